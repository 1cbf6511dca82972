"""What the benchmark of drawn charts asks about."""

import pytest

from benchmarks import multimodal_tiny
from benchmarks.multimodal_tiny import BARS_ASKED, CHARTS_SEED, charts, share, sources
from data.pictures.drawn import draw
from train.config_files import read_config


def test_a_share_lies_in_its_interval():
    assert share([True, False, True, True]) == pytest.approx([0.75, 0.3006, 0.9544], abs=1e-4)


def test_charts_that_are_asked_about_have_a_seed_of_their_own_and_the_size_of_the_others():
    side = read_config("multimodal_tiny").data.tiles.tile_size
    assert all(source.corpus_seed != CHARTS_SEED and source.side == side for source in sources().values())


def test_no_chart_that_is_trained_on_is_asked_about(monkeypatch):
    trained = sources()["charts"].model_copy(update={"corpus_seed": CHARTS_SEED, "bars": (BARS_ASKED,), "pictures": 30})
    monkeypatch.setattr(multimodal_tiny, "sources", lambda: {"charts": trained})
    expected = [draw(CHARTS_SEED, number, "charts", trained.side, BARS_ASKED) for number in range(30, 40)]
    assert [chart.image.tobytes() for chart in charts(10)] == [chart.image.tobytes() for chart in expected]

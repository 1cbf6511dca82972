"""What the benchmark of drawn charts asks about."""

import pytest

from benchmarks.multimodal_tiny import BARS_ASKED, charts, share, sources
from train.config_files import read_config


def test_a_share_lies_in_its_interval():
    assert share([True, False, True, True]) == pytest.approx([0.75, 0.3006, 0.9544], abs=1e-4)


def test_no_chart_that_is_asked_about_is_trained_on():
    side, asked = read_config("multimodal_tiny").data.tiles.tile_size, charts(40)
    assert len({picture.image.tobytes() for picture in asked}) == 40
    assert all(len(picture.questions) == BARS_ASKED + 2 and picture.image.width == side for picture in asked)
    for source in sources().values():
        assert source.side == side and BARS_ASKED in source.bars
        trained = {source.drawn(number).image.tobytes() for number in range(source.pictures)}
        assert not trained & {picture.image.tobytes() for picture in asked}

"""What the benchmark of drawn charts counts as right."""

import pytest

from benchmarks.multimodal_tiny import CHARTS_SEED, charts, paired, relaxed
from data.pictures.drawn import draw
from train.config_files import read_config


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("7", "7", True),
        (" 7 ", "7", True),
        ("7.3", "7", True),
        ("7.4", "7", False),
        ("8", "7", False),
        ("Red", "red", True),
        ("red bar", "red", False),
        ("", "7", False),
        ("seven", "7", False),
    ],
)
def test_a_number_may_differ_by_a_twentieth_and_a_word_not_at_all(answer, gold, right):
    assert relaxed(answer, gold) == right


def test_the_paired_test_counts_the_questions_on_which_two_models_differ():
    assert paired([True, False, True], [True, False, True]) == 1.0
    assert paired([True] * 10 + [False] * 90, [False] * 100) == pytest.approx(2 * 0.5**10)
    assert paired([True] * 3 + [False] * 3, [False] * 3 + [True] * 3) == 1.0


def test_charts_that_are_asked_about_are_not_those_of_training():
    source = read_config("multimodal_tiny").data.sources["charts"]
    assert source.corpus_seed != CHARTS_SEED and source.side == read_config("multimodal_tiny").data.tiles.tile_size
    asked = charts(3)
    assert len({picture.questions for picture in asked}) == 3
    trained = [draw(source.corpus_seed, number, "charts", source.side).questions for number in range(100)]
    assert not {picture.questions for picture in asked} & {*trained}

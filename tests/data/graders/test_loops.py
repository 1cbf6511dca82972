"""Periodic tails of answers."""

from data.graders.loops import loop_in


def test_tails_that_repeat_are_loops():
    start = list(range(1000, 1100))
    assert loop_in(start + [7] * 64) == 100 and loop_in(start + [7] * 63) is None
    assert loop_in(start + [1, 2, 3] * 30) == 100
    assert loop_in(start + list(range(256)) * 3) == 100 and loop_in(start + list(range(257)) * 3) is None
    assert loop_in(start + list(range(40)) * 2) is None, "two repeats are no loop"
    assert loop_in(start + [1, 2, 3] * 30 + [1]) == 100 and loop_in(start + [1, 2] * 40 + [9]) is None
    assert loop_in([]) is None

"""Answers that repeat themselves until they are cut."""

from collections.abc import Sequence

MAX_PERIOD, MIN_REPEATS, MIN_TOKENS = 256, 3, 64


def loop_in(tokens: Sequence[int]) -> int | None:
    """Where the periodic tail of an answer begins, as an index of `tokens`; None if there is none.

    A tail is periodic if its last `MIN_REPEATS` periods, of at most `MAX_PERIOD` tokens each, are equal and have at
    least `MIN_TOKENS` tokens together. From the index on, every token equals the one a period later."""
    n = len(tokens)
    for period in range(1, min(MAX_PERIOD, n // MIN_REPEATS) + 1):
        matched = 0
        while matched < n - period and tokens[n - 1 - matched] == tokens[n - 1 - matched - period]:
            matched += 1
        length = matched + period
        if length >= max(MIN_REPEATS * period, MIN_TOKENS):
            return n - length
    return None

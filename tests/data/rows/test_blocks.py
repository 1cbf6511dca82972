"""Blocks: what lies in a range, and where it may be cut."""

import numpy as np
import pytest

from data.rows.blocks import NO_BLOCKS, Blocks

BLOCKS = Blocks(np.array([3, 7, 10]), np.array([6, 10, 12]), np.array([2, 1, 4]))


def plain_limit(begin: int, limit: int, tiles: int) -> int:
    """`Blocks.limit` by trying every place."""
    whole = [(b, e, t) for b, e, t in zip(BLOCKS.begin, BLOCKS.end, BLOCKS.tiles, strict=True) if b >= begin]
    free = [at for at in range(begin, limit + 1) if not any(b < at < e for b, e, _ in whole)]
    return max(at for at in free if sum(t for _, e, t in whole if e <= at) <= tiles)


@pytest.mark.parametrize("begin", [0, 3, 6, 7, 10, 12])
def test_limits_equal_those_of_trying_every_place(begin):
    for limit in range(begin, 15):
        for tiles in range(8):
            assert BLOCKS.limit(begin, limit, tiles) == plain_limit(begin, limit, tiles), (limit, tiles)


def test_what_lies_around_a_place():
    assert [BLOCKS.around(at) for at in (3, 4, 6, 8, 10, 11)] == [None, (3, 6), None, (7, 10), None, (10, 12)]
    assert [BLOCKS.after(at) for at in (3, 4, 6, 8)] == [3, 6, 6, 10]
    assert [BLOCKS.ending(at) for at in (3, 6, 8, 10, 12)] == [2, 3, 7, 7, 10]
    assert [BLOCKS.tiles_in(*ends) for ends in ((0, 3), (0, 6), (3, 10), (6, 12), (12, 20))] == [0, 2, 3, 5, 0]


def test_no_blocks_limit_nothing():
    assert NO_BLOCKS.limit(2, 9, 0) == 9 and NO_BLOCKS.tiles_in(0, 9) == 0 and NO_BLOCKS.around(3) is None

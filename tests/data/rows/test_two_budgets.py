"""Packing under two budgets."""

import numpy as np
import pytest

from data.rows.packing import best_fit_in_cells
from data.rows.two_budgets import best_fit_in_cells_and_tiles, best_fit_in_two, even_tiles, placed_in_two
from tests.helpers.picture_mixture import measured

T, M = 8192, 56


def plain_best_fit(lengths, tiles, capacity: int, most: int) -> list[int]:
    """`best_fit_in_two` in exact fractions, one row after the other."""
    order = sorted(range(len(lengths)), key=lambda i: -max(lengths[i] / capacity, tiles[i] / most))
    rows, found = [], [0] * len(lengths)
    for i in order:
        fitting = [r for r, (n, m) in enumerate(rows) if n + lengths[i] <= capacity and m + tiles[i] <= most]
        room = {r: (capacity - rows[r][0]) * most + (most - rows[r][1]) * capacity for r in fitting}
        row = min(fitting, key=room.__getitem__) if fitting else len(rows)
        rows += [] if fitting else [(0, 0)]
        rows[row] = rows[row][0] + lengths[i], rows[row][1] + tiles[i]
        found[i] = row
    return found


def samples(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and tiles of samples with 0 to 4 pictures of 1 to 17 tiles, as many as fit into a row."""
    random = np.random.RandomState(seed)
    pictures = [random.choice([1, *range(3, 18)], random.randint(0, 5)) for _ in range(count)]
    pictures = [some if 147 * some.sum() < T - 1000 else some[:2] for some in pictures]
    tiles = np.array([some.sum() for some in pictures], np.int64)
    return 147 * tiles + random.randint(50, 1000, count), tiles


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_equals_its_twin_and_keeps_both_budgets(seed):
    lengths, tiles = samples(seed, 100)
    rows = best_fit_in_two(lengths, tiles, T, 50)
    assert rows.tolist() == plain_best_fit(lengths.tolist(), tiles.tolist(), T, 50)
    assert np.bincount(rows, lengths).max() <= T and np.bincount(rows, tiles).max() <= 50


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_full_of_tokens(seed):
    lengths, tiles = samples(seed, 200)
    for even in (False, True):
        rows, order = placed_in_two(lengths, tiles, T, M, even)
        assert sorted(order.tolist()) == list(range(200)) and (np.diff(rows[order]) >= 0).all()
        assert lengths.sum() / ((rows.max() + 1) * T) >= 0.95, (seed, even)


def test_rows_with_an_even_number_of_tiles_leave_less_padding():
    lengths, tiles = samples(7, 4000)
    padding = []
    for even in (False, True):
        rows, _ = placed_in_two(lengths, tiles, T, M, even)
        of_rows = np.bincount(rows, tiles)
        padding.append(1 - of_rows.mean() / of_rows.max())
    assert padding[1] < 0.08 < padding[0]


def test_an_item_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="more than 10 tokens or 2 tiles"):
        placed_in_two(np.array([5, 11]), np.array([0, 0]), 10, 2)
    with pytest.raises(ValueError, match="more than 10 tokens or 2 tiles"):
        placed_in_two(np.array([5, 5]), np.array([0, 3]), 10, 2)


def test_text_alone_needs_no_tiles():
    lengths = np.array([5, 5, 7])
    assert even_tiles(lengths, np.zeros(3, np.int64), 10, 0, 0) == 1
    rows, _ = placed_in_two(lengths, np.zeros(3, np.int64), 10, 0, True)
    assert rows.tolist() == [1, 1, 0]


def test_a_realistic_mixture_leaves_little_padding():
    """That of docs/guides/pictures.md, with fewer samples."""
    found = measured(count=4000)
    assert found["median_padding"] < 0.15 and found["fill"] > 0.95 and found["budgets"] <= 4


@pytest.mark.parametrize("seed", range(5))
def test_items_in_cells_keep_both_budgets_and_lie_in_one_cell_or_begin_one(seed):
    lengths, tiles = samples(seed, 150)
    cell = 2048
    rows, begins = best_fit_in_cells_and_tiles(lengths, tiles, T, cell, 50)
    assert np.bincount(rows, tiles).max() <= 50
    taken = np.zeros((rows.max() + 1, T), np.int64)
    for row, begin, length in zip(rows, begins, lengths, strict=True):
        taken[row, begin : begin + length] += 1
        assert begin % cell == 0 or begin // cell == (begin + length - 1) // cell
    assert taken.max() == 1 and taken.sum() == lengths.sum()


def test_cells_without_a_limit_of_tiles_are_as_full_as_those_of_texts():
    lengths, tiles = samples(3, 150)
    ours, _ = best_fit_in_cells_and_tiles(lengths, 0 * tiles, T, 2048, 1)
    texts, _ = best_fit_in_cells(lengths, T, 2048)
    assert ours.max() == texts.max()

"""Packing under two budgets: the tokens of rows, and the tiles of their pictures.

As in best fit, items are placed by descending size, each where it leaves the least room; both are measured in the
budget that is used more.
"""

import numpy as np

from data.rows.packing import LOOKAHEAD

LAYOUT = 1
"""Version of the cached plans. It changes whenever the same items are placed differently."""
EVEN = (1.02, 1.04, 1.07, 1.1, 1.15, 1.25, 1.5)
"""Numbers of tiles that are tried for all rows, as multiples of the mean of rows that are packed without regard to
them."""
MORE_ROWS = 0.005
"""Fraction of additional rows that is accepted for more even ones."""


def placed_in_two(
    lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and the items by rows and, inside a row, in their order. Rows have at
    most `capacity` tokens and `most` tiles; with `even`, fewer tiles if the first items then need hardly more rows.
    LOOKAHEAD items are placed together. Raises ValueError for an item that fits into no row."""
    if (lengths > capacity).any() or (tiles > most).any():
        raise ValueError(f"an item has more than {capacity} tokens or {most} tiles")
    if even:
        most = even_tiles(lengths[:LOOKAHEAD], tiles[:LOOKAHEAD], capacity, most, int(tiles.max(initial=0)))
    rows, num_rows = np.empty(lengths.size, np.int64), 0
    for low in range(0, lengths.size, LOOKAHEAD):
        some = slice(low, low + LOOKAHEAD)
        rows[some] = num_rows + best_fit_in_two(lengths[some], tiles[some], capacity, most)
        num_rows = int(rows[some].max()) + 1
    return rows, np.argsort(rows, kind="stable")


def even_tiles(lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int, least: int) -> int:
    """The smallest number of tiles per row, at least `least` and at most `most`, among a few multiples of the mean,
    with which these items need at most MORE_ROWS more rows than with `most`."""
    if not tiles.any():
        return max(least, 1)
    num_rows = int(best_fit_in_two(lengths, tiles, capacity, most).max()) + 1
    for multiple in EVEN:
        limit = max(least, int(np.ceil(multiple * tiles.sum() / num_rows)))
        if limit >= most:
            break
        found = int(best_fit_in_two(lengths, tiles, capacity, limit).max()) + 1
        if found <= num_rows * (1 + MORE_ROWS):
            return limit
    return most


def best_fit_in_two(lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int) -> np.ndarray:
    """int64 [items]: the row of each item."""
    wanted = np.stack([lengths / capacity, tiles / max(most, 1)])
    rows, room = np.empty(lengths.size, np.int64), np.empty((2, lengths.size))
    num_rows = 0
    for item in np.argsort(-wanted.max(axis=0), kind="stable").tolist():
        need = wanted[:, item, None]
        left = room[:, :num_rows] - need
        fits = (left > -1e-9).all(axis=0)
        if fits.any():
            row = int(np.where(fits, left.sum(axis=0), np.inf).argmin())
        else:
            row, num_rows = num_rows, num_rows + 1
            room[:, row] = 1
        room[:, row] -= need[:, 0]
        rows[item] = row
    return rows

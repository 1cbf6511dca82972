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
    lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int, even: bool = False, cell: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and the items by rows and, inside a row, in their order. Rows have at
    most `capacity` tokens and `most` tiles; with `even`, fewer tiles if the first items then need hardly more rows.
    `cell`: tokens per cell; None: rows have no cells. LOOKAHEAD items are placed together. Raises ValueError for an
    item that fits into no row."""
    if (lengths > capacity).any() or (tiles > most).any():
        raise ValueError(f"an item has more than {capacity} tokens or {most} tiles")
    if even:
        least = int(tiles.max(initial=0))
        most = even_tiles(lengths[:LOOKAHEAD], tiles[:LOOKAHEAD], capacity, most, least, cell)
    rows, begins, num_rows = np.empty(lengths.size, np.int64), np.zeros(lengths.size, np.int64), 0
    for low in range(0, lengths.size, LOOKAHEAD):
        some = slice(low, low + LOOKAHEAD)
        found, begins[some] = _best_fit(lengths[some], tiles[some], capacity, most, cell)
        rows[some] = num_rows + found
        num_rows = int(rows[some].max()) + 1
    return rows, np.lexsort((begins, rows))


def even_tiles(
    lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int, least: int, cell: int | None = None
) -> int:
    """The smallest number of tiles per row, at least `least` and at most `most`, among a few multiples of the mean,
    with which these items need at most MORE_ROWS more rows than with `most`."""
    if not tiles.any():
        return max(least, 1)
    num_rows = int(_best_fit(lengths, tiles, capacity, most, cell)[0].max()) + 1
    for multiple in EVEN:
        limit = max(least, int(np.ceil(multiple * tiles.sum() / num_rows)))
        if limit >= most:
            break
        found = int(_best_fit(lengths, tiles, capacity, limit, cell)[0].max()) + 1
        if found <= num_rows * (1 + MORE_ROWS):
            return limit
    return most


def _best_fit(
    lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int, cell: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and where it begins there; 0 for all where rows have no cells."""
    if cell is not None:
        return best_fit_in_cells_and_tiles(lengths, tiles, capacity, cell, most)
    return best_fit_in_two(lengths, tiles, capacity, most), np.zeros(lengths.size, np.int64)


def by_descending_size(lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int) -> list[int]:
    """The items, largest first, by the budget of which they need the larger fraction."""
    return np.argsort(-np.maximum(lengths / capacity, tiles / max(most, 1)), kind="stable").tolist()


def best_fit_in_two(lengths: np.ndarray, tiles: np.ndarray, capacity: int, most: int) -> np.ndarray:
    """int64 [items]: the row of each item."""
    wanted = np.stack([lengths / capacity, tiles / max(most, 1)])
    rows, room = np.empty(lengths.size, np.int64), np.empty((2, lengths.size))
    num_rows = 0
    for item in by_descending_size(lengths, tiles, capacity, most):
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


def best_fit_in_cells_and_tiles(
    lengths: np.ndarray, tiles: np.ndarray, capacity: int, cell: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and where it begins there. An item that is longer than a cell begins
    with one; a shorter one goes to the begun cell where it leaves the least room, of the rows that have enough tiles
    left."""
    rows, begins = np.empty(lengths.size, np.int64), np.empty(lengths.size, np.int64)
    # of each row: free cells and tiles; of each begun cell: its row, free places, and where they begin
    free, left = np.zeros(lengths.size, np.int64), np.zeros(lengths.size, np.int64)
    cell_row, cell_room, cell_at = (np.zeros(lengths.size, np.int64) for _ in range(3))
    num_rows = num_cells = 0
    for item in by_descending_size(lengths, tiles, capacity, most):
        need, wanted = int(lengths[item]), -(-int(lengths[item]) // cell)
        enough = left[cell_row[:num_cells]] >= tiles[item]
        fits = (cell_room[:num_cells] >= need) & enough
        if fits.any():
            at = int(np.where(fits, cell_room[:num_cells], capacity + 1).argmin())
        else:
            whole = (free[:num_rows] >= wanted) & (left[:num_rows] >= tiles[item])
            if whole.any():
                row = int(np.where(whole, free[:num_rows], capacity + 1).argmin())
            else:
                row, num_rows = num_rows, num_rows + 1
                free[row], left[row] = capacity // cell, most
            at, num_cells = num_cells, num_cells + 1
            cell_row[at], cell_room[at], cell_at[at] = row, wanted * cell, capacity - free[row] * cell
            free[row] -= wanted
        rows[item], begins[item] = cell_row[at], cell_at[at]
        cell_room[at] -= need
        cell_at[at] += need
        left[cell_row[at]] -= tiles[item]
    return rows, begins

"""Places trajectories in rows. Trajectories that fit stay whole; longer ones are cut between turns into windows.

A window is a segment of its own. It repeats the trajectory's context (system message and tools) and then the last turns
before the cut, as far as they fit into a share of the remaining room; whole new turns follow. Repeated tokens are
inputs and no labels, so that every token of a trajectory except the first is a label exactly once. A label inside a
turn always follows the token before it: a window that begins inside a turn repeats at least that one, or else repeats
nothing, so that its first token is the label of the window before it. No cut goes through a block, such as a picture.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.array_folder import ArrayFolder
from data.rows.blocks import NO_BLOCKS, Blocks
from data.rows.packing import Documents, Spans, placed
from data.rows.two_budgets import placed_in_two

LAYOUT = 3
"""Version of the cached plans. It changes whenever the same trajectories are cut or placed differently."""


class Window(NamedTuple):
    """New tokens [begin, end), after repeated tokens: the first `context` ones and [overlap, begin)."""

    context: int
    """Number of first tokens of the trajectory that are repeated."""
    overlap: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.context + self.end - self.overlap


@dataclasses.dataclass
class Cuts:
    """Counts of what was cut."""

    runs: int = 0
    """Trajectories that are longer than a row."""
    windows: int = 0
    """Windows of those trajectories."""
    turns: int = 0
    """Turns that are cut inside, because they are longer than the room of a window."""
    contexts_not_repeated: int = 0
    """Trajectories whose context takes more than three quarters of a row. Only the first window contains it, and it may
    be cut."""
    repeated_tokens: int = 0


def windows_of(begin: int, end: int, turns: np.ndarray, context: int, length: int, share: float, cuts: Cuts,
               blocks: Blocks = NO_BLOCKS, tiles: int = 0) -> Iterator[Window]:  # fmt: skip
    """The windows, of at most `length` tokens and `tiles` tiles, of the trajectory with tokens [begin, end) and turns
    from `turns` on. Each of its `blocks` must fit into a window.

    `share`: the fraction of the room after the context for repeated turns. If not even one turn fits there, its last
    tokens are repeated. Repeated turns take less room if only then the next turn fits whole. After a context, a window
    that begins inside a turn repeats at least one token of it, and a whole block if one ends there. Where only then the
    next block fits, a window repeats no turns, or nothing.
    """
    if end - begin <= length and blocks.tiles_in(begin, end) <= tiles:
        yield Window(0, begin, begin, end)
        return
    cuts.runs += 1
    if context > min(length * 3 // 4, length - 2) or 4 * blocks.tiles_in(begin, begin + context) > 3 * tiles:
        cuts.contexts_not_repeated += 1
        context = 0
    room, first = length - context, begin + context
    borders = np.append(turns[1:], end)  # without the border between the begin-of-text token and the first turn
    repeated_tiles = blocks.tiles_in(begin, first)
    window = Window(0, begin, begin, _stop(borders, blocks.limit(begin, begin + length, tiles), first, end, cuts))
    while True:
        cuts.windows += 1
        cuts.repeated_tokens += window.context + window.begin - window.overlap
        yield window
        if (at := window.end) == end:
            return
        after = int(np.searchsorted(borders, at, "right"))
        turn, inside = int(borders[after]) - at, after == 0 or borders[after - 1] != at
        most = min(int(share * room), room - turn if turn <= room else room)
        most = max(most, at - blocks.ending(at)) if inside and context else most
        whole = Window(context, blocks.after(_overlap(first, at, borders, most)), at, 0)
        smaller = [Window(0, at, at, 0)] if inside else [Window(context, at, at, 0), Window(0, at, at, 0)]
        for window in (whole, *smaller):
            left = tiles - (repeated_tiles if window.context else 0)
            limit = blocks.limit(window.overlap, window.overlap + length - window.context, left)
            if limit > at:
                break
        window = window._replace(end=_stop(borders, limit, at, end, cuts))


def _stop(borders: np.ndarray, limit: int, least: int, end: int, cuts: Cuts) -> int:
    """The last border up to `limit` that is greater than `least`; if there is none, `limit` or `end`."""
    border = int(np.searchsorted(borders, limit, "right")) - 1
    if border >= 0 and borders[border] > least:
        return int(borders[border])
    cuts.turns += 1
    return min(limit, end)


def _overlap(first: int, at: int, borders: np.ndarray, most: int) -> int:
    """The index of the first repeated token before `at`; at most `most` tokens are repeated."""
    earliest = max(at - most, first)
    border = int(borders[np.searchsorted(borders, earliest)])
    return border if border < at else earliest


def window_arrays(
    documents: Documents, store: ArrayFolder, length: int, share: float, cell: int | None = None
) -> tuple[dict, Cuts]:
    """The arrays of `Windowed`, for trajectories in their final order. `cell`: tokens per cell; None: rows have no
    cells."""
    windows, cuts = _all_windows(documents, store, length, share)
    rows, order = placed(windows.sizes, length, cell)
    return _arranged(windows.pieces, windows.counts, rows, order), cuts


def windows_in_two(
    documents: Documents,
    store: ArrayFolder,
    length: int,
    share: float,
    blocks: Blocks,
    tiles: int,
    even: bool,
    cell: int | None = None,
) -> tuple[dict, Cuts]:
    """The arrays of `Windowed`, as `window_arrays`, for rows of at most `tiles` tiles; also `row_tiles` int64[rows],
    the tiles of each row. `even`: rows may have less room, so that they have about equally many."""
    windows, cuts = _all_windows(documents, store, length, share, blocks, tiles)
    rows, order = placed_in_two(windows.sizes, windows.tiles, length, tiles, even, cell)
    row_tiles = np.bincount(rows, windows.tiles).astype(np.int64)
    return _arranged(windows.pieces, windows.counts, rows, order) | {"row_tiles": row_tiles}, cuts


class _Windows(NamedTuple):
    """All windows of a selection of trajectories."""

    pieces: np.ndarray
    """int64[pieces, 5]: the columns of `Spans`."""
    counts: np.ndarray
    """int64[windows]: the number of pieces of each."""
    sizes: np.ndarray
    """int64[windows]: tokens."""
    tiles: np.ndarray
    """int64[windows]"""


def _all_windows(documents: Documents, store: ArrayFolder, length: int, share: float, blocks: Blocks = NO_BLOCKS,
                 tiles: int = 0) -> tuple[_Windows, Cuts]:  # fmt: skip
    cuts, pieces, sizes, counts, of_windows = Cuts(), [], [], [], []
    starts = store["offsets"][:-1]
    of_run = np.searchsorted(starts, documents.begin)
    low, high = (np.searchsorted(store["turns"], edge) for edge in (documents.begin, documents.end))
    for run, begin, end, first, last in zip(of_run, *documents, low, high, strict=True):
        turns, context = store["turns"][first:last], int(store["context"][run])
        windows = list(windows_of(int(begin), int(end), turns, context, length, share, cuts, blocks, tiles))
        for i, window in enumerate(windows):
            found = _pieces(int(begin), window, i + 1 < len(windows) and windows[i + 1].begin == _start(windows[i + 1]))
            pieces += found
            sizes.append(window.size)
            counts.append(len(found))
            repeated = blocks.tiles_in(int(begin), int(begin) + window.context)
            of_windows.append(repeated + blocks.tiles_in(window.overlap, window.end))
    columns = (np.array(column, np.int64) for column in (pieces, counts, sizes, of_windows))
    return _Windows(*columns), cuts


def _start(window: Window) -> int:
    """Index of the first token of a window; -1 if it is in the context."""
    return -1 if window.context else window.overlap


def _pieces(begin: int, window: Window, continued: bool) -> list[tuple[int, int, bool, bool, bool]]:
    """The columns of `Spans`. `continued`: the next window repeats nothing, so that its first token is the label of
    this window's last one."""
    repeated = [(begin, begin + window.context), (window.overlap, window.begin)]
    repeated = [(a, b, False, True) for a, b in repeated if a < b]
    runs = [*repeated, (window.begin, window.end, continued, False)]
    return [(a, b - a, goes_on, i > 0, again) for i, (a, b, goes_on, again) in enumerate(runs)]


def _arranged(pieces: np.ndarray, counts: np.ndarray, rows: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """The pieces of all windows, `counts` per window, by `rows` and in `order`, both of windows."""
    rank = np.argsort(order)
    of_window = np.repeat(np.arange(counts.size), counts)
    by_row = np.argsort(rank[of_window], kind="stable")
    begin, length, continued, joins, repeated = pieces[by_row].T
    flags = {"continued": continued, "joins": joins, "repeated": repeated}
    return {
        "begin": begin,
        "length": length,
        **{name: flag.astype(np.bool_) for name, flag in flags.items()},
        "row": np.searchsorted(rows[of_window][by_row], np.arange(rows.max() + 2)),
    }


class Windowed:
    """Windows of trajectories, packed by best fit. Rows are the same in every epoch."""

    def __init__(self, arrays: ArrayFolder):
        self._columns = [arrays[name] for name in Spans._fields]
        self._row, self.cuts = arrays["row"], arrays.meta["cuts"]
        self.row_tiles: np.ndarray | None = arrays.arrays.get("row_tiles")
        """int64[rows]: the tiles of each row; None: of a source without pictures."""
        self.num_rows = self._row.size - 1
        self.num_tokens = int(self._columns[1].sum()) - self.cuts["repeated_tokens"]

    def pieces(self, epoch: int, row: int) -> Spans:
        of_row = slice(int(self._row[row]), int(self._row[row + 1]))
        return Spans(*[column[of_row] for column in self._columns])

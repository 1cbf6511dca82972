"""Places trajectories in rows. Trajectories that fit stay whole; longer ones are cut between turns into windows.

A window is a segment of its own. It repeats the trajectory's context (system message and tools) and then the last turns
before the cut, as far as they fit into a share of the remaining room; whole new turns follow. Repeated tokens are
inputs and no labels, so that every token of a trajectory except the first is a label exactly once. A label inside a
turn always follows the token before it: a window that begins inside a turn repeats at least that one.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.array_folder import ArrayFolder
from data.rows.packing import Documents, Spans, placed

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


def windows_of(begin: int, end: int, turns: np.ndarray, context: int, length: int, share: float, cuts: Cuts
               ) -> Iterator[Window]:  # fmt: skip
    """The windows, of at most `length` tokens, of the trajectory with tokens [begin, end) and turns from `turns` on.

    `share`: the fraction of the room after the context for repeated turns. If not even one turn fits there, its last
    tokens are repeated. Repeated turns take less room if only then the next turn fits whole. After a context, a window
    that begins inside a turn repeats at least one token of it.
    """
    if end - begin <= length:
        yield Window(0, begin, begin, end)
        return
    cuts.runs += 1
    if context > min(length * 3 // 4, length - 2):
        cuts.contexts_not_repeated += 1
        context = 0
    room, first = length - context, begin + context
    borders = np.append(turns[1:], end)  # without the border between the begin-of-text token and the first turn
    window = Window(0, begin, begin, _stop(borders, begin + length, first, end, cuts))
    while True:
        cuts.windows += 1
        cuts.repeated_tokens += window.context + window.begin - window.overlap
        yield window
        if (at := window.end) == end:
            return
        after = int(np.searchsorted(borders, at, "right"))
        turn, inside = int(borders[after]) - at, after == 0 or borders[after - 1] != at
        most = min(int(share * room), room - turn if turn <= room else room)
        most = max(most, 1) if inside and context else most
        overlap = _overlap(first, at, borders, most)
        window = Window(context, overlap, at, _stop(borders, overlap + room, at, end, cuts))


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
    cuts, pieces, sizes, counts = Cuts(), [], [], []
    starts = store["offsets"][:-1]
    of_run = np.searchsorted(starts, documents.begin)
    low, high = (np.searchsorted(store["turns"], edge) for edge in (documents.begin, documents.end))
    for run, begin, end, first, last in zip(of_run, *documents, low, high, strict=True):
        turns, context = store["turns"][first:last], int(store["context"][run])
        windows = list(windows_of(int(begin), int(end), turns, context, length, share, cuts))
        for i, window in enumerate(windows):
            found = _pieces(int(begin), window, i + 1 < len(windows) and windows[i + 1].begin == _start(windows[i + 1]))
            pieces += found
            sizes.append(window.size)
            counts.append(len(found))
    rows, order = placed(np.array(sizes), length, cell)
    return _arranged(np.array(pieces, np.int64), np.array(counts), rows, order), cuts


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
        self.num_rows = self._row.size - 1
        self.num_tokens = int(self._columns[1].sum()) - self.cuts["repeated_tokens"]

    def pieces(self, epoch: int, row: int) -> Spans:
        of_row = slice(int(self._row[row]), int(self._row[row + 1]))
        return Spans(*[column[of_row] for column in self._columns])

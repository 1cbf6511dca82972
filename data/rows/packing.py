"""Packing: places pieces of documents in rows, and makes a row's arrays from its pieces.

A piece is a run of consecutive tokens of one document inside one row. It either begins a new segment, in which
positions restart, or continues the segment of the piece before it. The label of a token is the next token of its
document, even if that token is in the next row. So with every way of packing, every token except the first of a
document counts as a label exactly once per epoch.

Rows may be divided into cells. A segment then lies in one cell, or begins where a cell begins, so that its attention
chunks, counted from its start, lie in one cell each.
"""

import bisect
from typing import Any, NamedTuple, Protocol

import numpy as np

from data.array_folder import ArrayFolder
from data.order import derive, shuffled
from data.rows.fields import PACKED, Row, filled

LOOKAHEAD = 8192
"""Number of pieces that best-fit packing sorts and places together."""


class Documents(NamedTuple):
    """The ranges of documents in a token array: int64 [documents], end exclusive."""

    begin: np.ndarray
    end: np.ndarray


class Spans(NamedTuple):
    """The pieces of one row, in order."""

    begin: np.ndarray
    """int64 [pieces]: index of the first token."""
    length: np.ndarray
    """int64 [pieces]"""
    continued: np.ndarray
    """bool [pieces]: the document continues after the piece, so that the piece's last token has a label."""
    joins: np.ndarray
    """bool [pieces]: the piece continues the segment of the piece before it."""
    repeated: np.ndarray
    """bool [pieces]: the piece's tokens count as labels elsewhere and are only context here."""

    @classmethod
    def apart(cls, begin: np.ndarray, length: np.ndarray, continued: np.ndarray) -> "Spans":
        """Pieces that are all separate segments and not repeated."""
        none = np.zeros(begin.size, np.bool_)
        return cls(begin, length, continued.astype(np.bool_), none, none)


class RowLayout(NamedTuple):
    """The places of a row that contain tokens, each [n]."""

    place: np.ndarray
    """int64: place in the row."""
    token: np.ndarray
    """int64: index of the token."""
    label: np.ndarray
    """int64: index of the token that is its label; -1 where there is none."""
    counts: np.ndarray
    """bool: there is a label, and it counts here."""
    position: np.ndarray
    """int64: position inside the segment, from 0."""
    segment: np.ndarray
    """int64: number of the segment, from 1."""


class Plan(Protocol):
    """Rows of one epoch."""

    num_rows: int
    num_tokens: int

    def pieces(self, epoch: int, row: int) -> Spans: ...


def places_of(pieces: Spans, cell: int | None = None) -> RowLayout:
    """Finds the tokens of a row and their labels. `cell`: tokens per cell; None: the row has no cells."""
    ends = np.cumsum(pieces.length)
    starts, last = ends - pieces.length, ends - 1
    index = np.arange(int(ends[-1]))
    over = lambda of_piece: np.repeat(of_piece, pieces.length)
    # In piece p, the row's i-th token is token i + shift[p].
    token = index + over(pieces.begin - starts)
    label = np.append(token[1:], -1)
    counts = np.append(~over(pieces.repeated)[1:], False)
    ending = ~np.append(pieces.joins[1:], False)  # the pieces that are the last of their segment
    going_on = pieces.continued[ending]
    label[last[ending]] = np.where(going_on, (pieces.begin + pieces.length)[ending], -1)
    counts[last[ending]] = going_on
    first, segment = starts[~pieces.joins], over(np.cumsum(~pieces.joins))
    position = index - first[segment - 1]
    if cell is None:
        return RowLayout(index, token, label, counts, position, segment)
    begin = begins_in_cells(ends[ending] - first, cell)
    return RowLayout(begin[segment - 1] + position, token, label, counts, position, segment)


def begins_in_cells(lengths: np.ndarray, cell: int) -> np.ndarray:
    """int64 [segments]: where segments of these lengths begin in a row, one after the other, each as early as cells
    allow."""
    begins, at = [], 0
    for length in lengths.tolist():
        room = -at % cell
        at += room if length > room else 0
        begins.append(at)
        at += length
    return np.array(begins, np.int64)


def row_of(tokens: np.ndarray, places: RowLayout, length: int) -> Row:
    """A row of `length` places: the fields `PACKED`, each [length]."""
    row, at = filled(PACKED, length), places.place
    row["tokens"][at] = tokens[places.token]
    row["labels"][at] = np.where(places.label < 0, 0, tokens[places.label])
    row["loss_weights"][at] = places.counts
    row["positions"][at] = places.position
    row["segment_ids"][at] = places.segment
    return row


def document_order(documents: Documents, seed: int | None) -> Documents:
    """`documents` shuffled by `seed`; unchanged if it is None."""
    if seed is None:
        return documents
    order = shuffled(documents.begin.size, derive(seed, "documents"))
    return Documents(documents.begin[order], documents.end[order])


# ---- concatenate ---------------------------------------------------------------------------------------------------


def concatenate_arrays(documents: Documents) -> dict[str, np.ndarray]:
    """The arrays that `Concatenated` reads, for documents in their final order."""
    ends = np.cumsum(documents.end - documents.begin)
    return {"begin": documents.begin, "stream": np.concatenate([np.zeros(1, np.int64), ends])}


class Concatenated:
    """Documents end to end in a circle, cut every `length` tokens. The first cut differs between epochs. Only the last
    row of an epoch may have padding. Where rows have cells, a document that begins inside a cell is cut at its end."""

    def __init__(
        self,
        arrays: ArrayFolder | dict[str, np.ndarray],
        length: int,
        seed: int | None,
        cell: int | None = None,
    ):
        self._begin, self._stream = arrays["begin"], arrays["stream"]
        self.length, self._seed, self._cell = length, seed, cell
        self.num_tokens = int(self._stream[-1])
        self.num_rows = self.rows_after(0)

    def rows_after(self, offset: int) -> int:
        """The rows of an epoch whose first `offset` tokens are not read."""
        return -(-(self.num_tokens - offset) // self.length)

    def pieces(self, epoch: int, row: int, offset: int = 0) -> Spans:
        """offset: tokens of the epoch before its row 0."""
        first = offset + row * self.length
        count = min(self.length, self.num_tokens - first)
        at = (self._turn(epoch) + first) % self.num_tokens
        head = min(count, self.num_tokens - at)
        pieces = self._between(at, at + head)
        if head < count:
            wrapped = self._between(0, count - head)
            pieces = Spans(*[np.concatenate(pair) for pair in zip(pieces, wrapped, strict=True)])
        return pieces if self._cell is None else cut_at_cells(pieces, self._cell)

    def _turn(self, epoch: int) -> int:
        """The place in the circle where an epoch begins."""
        if self._seed is None or epoch == 0:
            return 0
        return derive(self._seed, "turn", epoch) % self.num_tokens

    def _between(self, low: int, high: int) -> Spans:
        """The nonempty pieces in stream positions [low, high)."""
        first = int(np.searchsorted(self._stream, low, "right")) - 1
        last = int(np.searchsorted(self._stream, high, "left"))
        edges = self._stream[first : last + 1]
        begins, ends = np.maximum(edges[:-1], low), np.minimum(edges[1:], high)
        begin = self._begin[first:last] + (begins - edges[:-1])
        return Spans.apart(begin, ends - begins, ends < edges[1:])


def cut_at_cells(pieces: Spans, cell: int) -> Spans:
    """Pieces end to end, all separate segments, of which each that begins inside a cell and is longer than the rest of
    the cell is cut there."""
    ends = np.cumsum(pieces.length)
    room = -(ends - pieces.length) % cell
    cut = (room > 0) & (pieces.length > room)
    first = np.where(cut, room, pieces.length)
    at = np.repeat(np.arange(cut.size), 1 + cut)
    rest = np.append(False, at[1:] == at[:-1])
    begin = (pieces.begin + np.where(cut, first, 0))[at]
    begin = np.where(rest, begin, pieces.begin[at])
    length = np.where(rest, (pieces.length - first)[at], first[at])
    return Spans.apart(begin, length, np.where(rest | ~cut[at], pieces.continued[at], True))


# ---- best fit ------------------------------------------------------------------------------------------------------


def best_fit_arrays(documents: Documents, length: int, cell: int | None = None) -> dict[str, np.ndarray]:
    """The arrays that `BestFitted` reads: pieces of at most `length` tokens, grouped by row. `cell`: tokens per cell;
    None: rows have no cells."""
    sizes = documents.end - documents.begin
    counts = -(-sizes // length)
    document = np.repeat(np.arange(sizes.size), counts)
    offset = (np.arange(document.size) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    piece_length = np.minimum(sizes[document] - offset, length)
    rows, order = placed(piece_length, length, cell)
    return {
        "begin": (documents.begin[document] + offset)[order],
        "length": piece_length[order],
        "continued": (offset + piece_length < sizes[document])[order],
        "row": np.searchsorted(rows[order], np.arange(rows.max() + 2)),
    }


def placed(lengths: np.ndarray, capacity: int, cell: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and the items by rows and, inside a row, in their order there.
    LOOKAHEAD items are placed together."""
    rows, begins = np.empty(lengths.size, np.int64), np.zeros(lengths.size, np.int64)
    num_rows = 0
    for low in range(0, lengths.size, LOOKAHEAD):
        some = slice(low, low + LOOKAHEAD)
        if cell is None:
            found = best_fit_decreasing(lengths[some], capacity)
        else:
            found, begins[some] = best_fit_in_cells(lengths[some], capacity, cell)
        rows[some] = num_rows + found
        num_rows = int(rows[some].max()) + 1
    return rows, np.lexsort((begins, rows))


class _Rooms:
    """Bins, by the room that they have left."""

    def __init__(self):
        self._levels: list[int] = []  # distinct rooms, ascending
        self._bins: dict[int, list] = {}

    def add(self, room: int, one) -> None:
        if room not in self._bins:
            bisect.insort(self._levels, room)
        self._bins.setdefault(room, []).append(one)

    def least(self, need: int) -> tuple[int, Any] | None:
        """Takes out the newest bin with the least room of at least `need`; returns its room and it."""
        at = bisect.bisect_left(self._levels, need)
        if at == len(self._levels):
            return None
        room = self._levels[at]
        found = self._bins[room].pop()
        if not self._bins[room]:
            del self._levels[at], self._bins[room]
        return room, found


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [items]: the bin of each item. Items are placed by descending length, each in the bin where it leaves the
    least room."""
    bins = np.empty(lengths.size, np.int64)
    num_bins, rooms = 0, _Rooms()
    for item in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[item])
        room, bins[item] = rooms.least(need) or (capacity, num_bins)
        num_bins = max(num_bins, int(bins[item]) + 1)
        if room > need:
            rooms.add(room - need, bins[item])
    return bins


def best_fit_in_cells(lengths: np.ndarray, capacity: int, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [items] twice: the row of each item, and where it begins there. As `best_fit_decreasing`, but an item that
    is longer than a cell begins with one, and a shorter one goes to the cell where it leaves the least room."""
    rows, begins = np.empty(lengths.size, np.int64), np.empty(lengths.size, np.int64)
    in_row, num_rows = capacity // cell, 0
    cells, unused = _Rooms(), _Rooms()  # begun cells by free places, rows by free cells
    for item in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[item])
        found = cells.least(need)
        if found is None:
            wanted = -(-need // cell)
            free, row = unused.least(wanted) or (in_row, num_rows)
            num_rows = max(num_rows, row + 1)
            if free > wanted:
                unused.add(free - wanted, row)
            found = wanted * cell, (row, (in_row - free) * cell)
        room, (rows[item], begins[item]) = found
        if room > need:
            cells.add(room - need, (int(rows[item]), int(begins[item]) + need))
    return rows, begins


class BestFitted:
    """Documents that fit in a row stay whole; the rows are the same in every epoch."""

    def __init__(self, arrays: ArrayFolder | dict[str, np.ndarray]):
        self._begin, self._length = arrays["begin"], arrays["length"]
        self._continued, self._row = arrays["continued"], arrays["row"]
        self.num_rows = self._row.size - 1
        self.num_tokens = int(self._length.sum())

    def pieces(self, epoch: int, row: int) -> Spans:
        of_row = slice(int(self._row[row]), int(self._row[row + 1]))
        return Spans.apart(self._begin[of_row], self._length[of_row], self._continued[of_row])

"""Packing: places pieces of documents in rows, and makes a row's arrays from its pieces.

A piece is a run of consecutive tokens of one document inside one row. It either begins a new segment, in which
positions restart, or continues the segment of the piece before it. The label of a token is the next token of its
document, even if that token is in the next row. So with every way of packing, every token except the first of a
document counts as a label exactly once per epoch.
"""

import bisect
from typing import NamedTuple, Protocol

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


def places_of(pieces: Spans) -> RowLayout:
    """Finds the tokens of a row and their labels."""
    ends = np.cumsum(pieces.length)
    starts, last = ends - pieces.length, ends - 1
    place = np.arange(int(ends[-1]))
    over = lambda of_piece: np.repeat(of_piece, pieces.length)
    # In piece p, place t of the row holds token t + shift[p].
    token = place + over(pieces.begin - starts)
    label = np.append(token[1:], -1)
    counts = np.append(~over(pieces.repeated)[1:], False)
    ending = ~np.append(pieces.joins[1:], False)  # the pieces that are the last of their segment
    going_on = pieces.continued[ending]
    label[last[ending]] = np.where(going_on, (pieces.begin + pieces.length)[ending], -1)
    counts[last[ending]] = going_on
    segment = np.cumsum(~pieces.joins)
    return RowLayout(token, label, counts, place - over(starts[~pieces.joins][segment - 1]), over(segment))


def row_of(tokens: np.ndarray, places: RowLayout, length: int) -> Row:
    """A row of `length` places: the fields `PACKED`, each [length]."""
    row = filled(PACKED, length)
    n = places.token.size
    row["tokens"][:n] = tokens[places.token]
    row["labels"][:n] = np.where(places.label < 0, 0, tokens[places.label])
    row["loss_weights"][:n] = places.counts
    row["positions"][:n] = places.position
    row["segment_ids"][:n] = places.segment
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
    row of an epoch may have padding."""

    def __init__(self, arrays: ArrayFolder | dict[str, np.ndarray], length: int, seed: int | None):
        self._begin, self._stream = arrays["begin"], arrays["stream"]
        self._length, self._seed = length, seed
        self.num_tokens = int(self._stream[-1])
        self.num_rows = -(-self.num_tokens // length)

    def pieces(self, epoch: int, row: int) -> Spans:
        first = row * self._length
        count = min(self._length, self.num_tokens - first)
        at = (self._turn(epoch) + first) % self.num_tokens
        head = min(count, self.num_tokens - at)
        pieces = self._between(at, at + head)
        if head == count:
            return pieces
        wrapped = self._between(0, count - head)
        return Spans(*[np.concatenate(pair) for pair in zip(pieces, wrapped, strict=True)])

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


# ---- best fit ------------------------------------------------------------------------------------------------------


def best_fit_arrays(documents: Documents, length: int) -> dict[str, np.ndarray]:
    """The arrays that `BestFitted` reads: pieces of at most `length` tokens, grouped by row."""
    sizes = documents.end - documents.begin
    counts = -(-sizes // length)
    document = np.repeat(np.arange(sizes.size), counts)
    offset = (np.arange(document.size) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    piece_length = np.minimum(sizes[document] - offset, length)
    rows, num_rows = placed(piece_length, length)
    order = np.argsort(rows, kind="stable")
    return {
        "begin": (documents.begin[document] + offset)[order],
        "length": piece_length[order],
        "continued": (offset + piece_length < sizes[document])[order],
        "row": np.searchsorted(rows[order], np.arange(num_rows + 1)),
    }


def placed(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """int64 [items]: the row of each item, and the number of rows. LOOKAHEAD items are placed together."""
    rows = np.empty(lengths.size, np.int64)
    num_rows = 0
    for low in range(0, lengths.size, LOOKAHEAD):
        some = slice(low, low + LOOKAHEAD)
        rows[some] = num_rows + best_fit_decreasing(lengths[some], capacity)
        num_rows = int(rows[some].max()) + 1
    return rows, num_rows


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [items]: the bin of each item. Items are placed by descending length, each in the bin where it leaves the
    least room."""
    bins = np.empty(lengths.size, np.int64)
    num_bins = 0
    levels: list[int] = []  # distinct free lengths of bins, ascending
    with_room: dict[int, list[int]] = {}
    for item in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[item])
        at = bisect.bisect_left(levels, need)
        if at == len(levels):
            chosen, room = num_bins, capacity
            num_bins += 1
        else:
            room = levels[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del levels[at], with_room[room]
        bins[item] = chosen
        left = room - need
        if left:
            if left not in with_room:
                bisect.insort(levels, left)
            with_room.setdefault(left, []).append(chosen)
    return bins


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

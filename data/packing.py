"""Documents into rows: which piece of which document stands where, and a row's arrays from its pieces.

A piece is a run of consecutive tokens of one document inside one row, and is a segment of its own there: positions
restart with it. A token's label is the next token of its document, also when that stands in the next row, so that
every token but a document's last is trained on exactly once per epoch, whichever way documents are packed.
"""

import bisect
from typing import NamedTuple, Protocol

import numpy as np

from data.array_folder import ArrayFolder
from data.order import derive, shuffled

LOOKAHEAD = 8192
"""Pieces that best-fit packing sorts and places together."""

FIELDS = {
    "tokens": np.int32,
    "labels": np.int32,
    "positions": np.int32,
    "segment_ids": np.int32,
    "loss_weights": np.float32,
}
"""Fields of a row and of a batch, each [T]."""

Row = dict[str, np.ndarray]


class Documents(NamedTuple):
    """Where documents are in a token array: int64 [documents], end exclusive."""

    begin: np.ndarray
    end: np.ndarray


class Pieces(NamedTuple):
    """The pieces of one row, in order."""

    begin: np.ndarray
    """int64 [pieces]: index of the first token."""
    length: np.ndarray
    """int64 [pieces]"""
    continued: np.ndarray
    """bool [pieces]: the document has a token after the piece, which is the last token's label."""


class Plan(Protocol):
    """Rows of one epoch."""

    num_rows: int
    num_tokens: int

    def pieces(self, epoch: int, row: int) -> Pieces: ...


def row_of(tokens: np.ndarray, pieces: Pieces, length: int) -> Row:
    """A row of `length` from its pieces of the token array: the fields of a batch, each [length]."""
    row = {name: np.zeros(length, dtype) for name, dtype in FIELDS.items()}
    ends = np.cumsum(pieces.length)
    filled, last = int(ends[-1]), ends - 1
    place = np.arange(filled)
    # In piece p, place t of the row holds token t + shift[p].
    ids = tokens[place + np.repeat(pieces.begin - (ends - pieces.length), pieces.length)]
    row["tokens"][:filled] = ids
    row["labels"][: filled - 1] = ids[1:]
    row["labels"][last] = 0
    going_on = pieces.continued.astype(bool)
    row["labels"][last[going_on]] = tokens[(pieces.begin + pieces.length)[going_on]]
    row["loss_weights"][:filled] = 1
    row["loss_weights"][last] = going_on
    row["positions"][:filled] = place - np.repeat(ends - pieces.length, pieces.length)
    row["segment_ids"][:filled] = np.repeat(np.arange(1, ends.size + 1), pieces.length)
    return row


def document_order(documents: Documents, seed: int | None) -> Documents:
    """`documents` shuffled by `seed`, or as they are without one."""
    if seed is None:
        return documents
    order = shuffled(documents.begin.size, derive(seed, "documents"))
    return Documents(documents.begin[order], documents.end[order])


# ---- concatenate ---------------------------------------------------------------------------------------------------


def concatenate_arrays(documents: Documents) -> dict[str, np.ndarray]:
    """What `Concatenated` reads, for documents in their final order."""
    ends = np.cumsum(documents.end - documents.begin)
    return {"begin": documents.begin, "stream": np.concatenate([np.zeros(1, np.int64), ends])}


class Concatenated:
    """Documents end to end in a circle, cut every `length` tokens from a place that differs between epochs. Only the
    last row of an epoch may have padding."""

    def __init__(self, arrays: ArrayFolder | dict[str, np.ndarray], length: int, seed: int | None):
        self._begin, self._stream = arrays["begin"], arrays["stream"]
        self._length, self._seed = length, seed
        self.num_tokens = int(self._stream[-1])
        self.num_rows = -(-self.num_tokens // length)

    def pieces(self, epoch: int, row: int) -> Pieces:
        first = row * self._length
        count = min(self._length, self.num_tokens - first)
        at = (self._turn(epoch) + first) % self.num_tokens
        head = min(count, self.num_tokens - at)
        pieces = self._between(at, at + head)
        if head == count:
            return pieces
        wrapped = self._between(0, count - head)
        return Pieces(*[np.concatenate(pair) for pair in zip(pieces, wrapped, strict=True)])

    def _turn(self, epoch: int) -> int:
        """Where in the circle an epoch begins."""
        if self._seed is None or epoch == 0:
            return 0
        return derive(self._seed, "turn", epoch) % self.num_tokens

    def _between(self, low: int, high: int) -> Pieces:
        """The pieces in stream positions [low, high), which are not empty."""
        first = int(np.searchsorted(self._stream, low, "right")) - 1
        last = int(np.searchsorted(self._stream, high, "left"))
        edges = self._stream[first : last + 1]
        begins, ends = np.maximum(edges[:-1], low), np.minimum(edges[1:], high)
        begin = self._begin[first:last] + (begins - edges[:-1])
        return Pieces(begin, ends - begins, ends < edges[1:])


# ---- best fit ------------------------------------------------------------------------------------------------------


def best_fit_arrays(documents: Documents, length: int) -> dict[str, np.ndarray]:
    """What `BestFitted` reads: pieces of at most `length` tokens, grouped by row."""
    sizes = documents.end - documents.begin
    counts = -(-sizes // length)
    document = np.repeat(np.arange(sizes.size), counts)
    offset = (np.arange(document.size) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    piece_length = np.minimum(sizes[document] - offset, length)
    rows = np.empty(document.size, np.int64)
    num_rows = 0
    for low in range(0, document.size, LOOKAHEAD):
        window = slice(low, low + LOOKAHEAD)
        rows[window] = num_rows + best_fit_decreasing(piece_length[window], length)
        num_rows = int(rows[window].max()) + 1
    order = np.argsort(rows, kind="stable")
    return {
        "begin": (documents.begin[document] + offset)[order],
        "length": piece_length[order],
        "continued": (offset + piece_length < sizes[document])[order],
        "row": np.searchsorted(rows[order], np.arange(num_rows + 1)),
    }


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [items]: the bin of each item. The longest item goes first; each goes where it leaves least room."""
    bins = np.empty(lengths.size, np.int64)
    num_bins = 0
    levels: list[int] = []  # rooms of which some bin has just that much left, ascending
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
    """Documents whole where they fit in a row; the same rows in every epoch."""

    def __init__(self, arrays: ArrayFolder | dict[str, np.ndarray]):
        self._begin, self._length = arrays["begin"], arrays["length"]
        self._continued, self._row = arrays["continued"], arrays["row"]
        self.num_rows = self._row.size - 1
        self.num_tokens = int(self._length.sum())

    def pieces(self, epoch: int, row: int) -> Pieces:
        of_row = slice(int(self._row[row]), int(self._row[row + 1]))
        return Pieces(self._begin[of_row], self._length[of_row], self._continued[of_row])

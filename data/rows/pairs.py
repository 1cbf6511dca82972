"""Pairs in rows: both sides of a pair lie side by side in one row, as two segments, so that neither packing nor
microbatches nor devices separate them."""

import dataclasses
import logging

import numpy as np

from data.array_folder import ArrayFolder
from data.preferences.weights import NEVER, PairWeights
from data.rows.fields import FIELDS, MISMATCHED, Row, filled
from data.rows.packing import RowLayout, Spans, begins_in_cells, placed
from data.rows.weighing import KINDS, marked
from data.trajectories.weights import weigh
from maverick_jax.errors import InputError

LAYOUT = 2
"""Version of the cached plans. It changes whenever the same pairs are placed differently."""
PAIR_FIELDS = tuple(name for name, field in FIELDS.items() if field.source == "preferences")

_log = logging.getLogger(__name__)


def split_pairs(store: ArrayFolder, fraction: float, name: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 (train, held out): numbers of pairs. The last tasks, with about `fraction` of the tokens, are held out; a
    task is never on both sides. Raises InputError if there is only one task to split."""
    task = store["task"]
    order = np.argsort(task, kind="stable")
    if fraction in (0, 1):
        return (order, order[:0]) if fraction == 0 else (order[:0], order)
    offsets = store["offsets"]
    sizes = (offsets[2::2] - offsets[:-2:2])[order]
    ends = np.cumsum(sizes)
    borders = np.flatnonzero(np.diff(task[order])) + 1
    if not borders.size:
        raise InputError(f"data.sources.{name}: all pairs are of one task, which is not split; set "
                         "held_out_fraction: 0, or 1")  # fmt: skip
    wanted = (1 - fraction) * int(ends[-1])
    first = int(borders[np.abs(ends[borders - 1] - wanted).argmin()])
    return order[:first], order[first:]


def pair_arrays(
    store: ArrayFolder, pairs: np.ndarray, length: int, name: str, cell: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The arrays that `PairPlan` reads, for the numbers of pairs in their final order, and the number of pairs that do
    not fit into a row of `length` tokens, which are left out. `cell`: tokens per cell; None: rows have no cells. Raises
    InputError if no pair fits."""
    offsets = store["offsets"]
    begin, end = (np.stack([offsets[2 * pairs + k], offsets[2 * pairs + k + 1]]) for k in (0, 1))
    lengths = np.stack([begin[1] - begin[0], end[1] - end[0]], axis=1)
    extents = _extents(lengths, cell)
    fits = extents <= length
    counts = {"too_long": int((~fits).sum())}
    if not fits.any():
        raise InputError(f"data.sources.{name}: no pair fits into data.sequence_length ({length}); the shortest has "
                         f"{int(extents.min(initial=0))} tokens")  # fmt: skip
    if counts["too_long"]:
        _log.warning("source %s: %d of %d pairs do not fit into data.sequence_length (%d) and are left out; the "
                     "longest has %d tokens", name, counts["too_long"], pairs.size, length,
                     int(extents.max()))  # fmt: skip
    rows, order = placed(extents[fits], length, cell)
    begins = np.stack([begin[0], end[0]], axis=1)[fits][order].reshape(-1)
    lengths, row = lengths[fits][order].reshape(-1), np.repeat(rows[order], 2)
    there = lengths > 0
    of_row = np.searchsorted(row[there], np.arange(rows.max() + 2))
    return {"begin": begins[there], "length": lengths[there], "row": of_row, "pairs": pairs[fits]}, counts


def _extents(lengths: np.ndarray, cell: int | None) -> np.ndarray:
    """int64 [pairs]: the places that the sides of these `lengths` [pairs, 2] take in a row."""
    whole = lengths.sum(axis=1)
    if cell is None:
        return whole
    for i in np.flatnonzero(whole > cell).tolist():
        sides = lengths[i][lengths[i] > 0]
        whole[i] = begins_in_cells(sides, cell)[-1] + sides[-1]
    return whole


class PairPlan:
    """Pairs, packed by best fit. Rows are the same in every epoch."""

    def __init__(self, arrays: ArrayFolder):
        self._begin, self._length, self._row = arrays["begin"], arrays["length"], arrays["row"]
        self.pairs, self.counts = arrays["pairs"], arrays.meta["counts"]
        self.num_rows = self._row.size - 1
        self.num_tokens = int(self._length.sum())

    def pieces(self, epoch: int, row: int) -> Spans:
        of_row = slice(int(self._row[row]), int(self._row[row + 1]))
        begin = self._begin[of_row]
        return Spans.apart(begin, self._length[of_row], np.zeros(begin.size, np.bool_))


@dataclasses.dataclass(frozen=True)
class OfPairs:
    """Weights of a source of pairs: the weight of the token kind, or that of the message if it has one; 0 for what the
    assistant does not write and, if `cancel`, before the first difference of the sides."""

    kinds: PairWeights
    cancel: bool

    def fields(self, store: ArrayFolder, places: RowLayout, length: int) -> Row:
        row = filled((KINDS, "loss_weights", *PAIR_FIELDS), length)
        label, at = places.label[places.counts], places.place[places.counts]
        offsets, kinds = store["offsets"], store["kinds"][label]
        side = np.searchsorted(offsets, label, "right") - 1
        pair = side // 2
        weights = weigh(self.kinds.table(), kinds, store["own"][label])
        cancels = self.cancel | (store["mismatched"][pair] > 0)
        weights[NEVER[kinds] | ((label - offsets[side] < store["shared"][pair]) & cancels)] = 0
        turn, turns = store["turn"][label].astype(np.int32), store["turns"][side].astype(np.int32)
        turn = np.minimum(turn, np.maximum(turns - 1, 0))
        row[KINDS][at], row["loss_weights"][at] = kinds, weights
        row["pair_ids"][at] = _numbered(pair)
        mismatched = store["mismatched"][pair] > 0
        row["sides"][at] = np.where(mismatched, MISMATCHED, 1 + side % 2)
        row["pair_turns"][at] = turn
        row["pair_turns_left"][at] = np.maximum(turns - 1 - turn, 0)
        row["pair_tail"][at] = _tail(pair, side, weights > 0)
        ends = (label == offsets[side + 1] - 1) & ~mismatched  # at + 1 is the place of the label itself
        row["side_ends"][at[ends] + 1] = (2 * row["pair_ids"][at] - 1 + side % 2)[ends]
        row["turn_labels"][at + 1] = store["turn_label"][label]
        return row | marked(store, places, length)


def _numbered(pair: np.ndarray) -> np.ndarray:
    """Consecutive numbers from 1 for pairs whose labels lie side by side."""
    return 1 + np.cumsum(np.append(False, pair[1:] != pair[:-1])) if pair.size else pair


def _tail(pair: np.ndarray, side: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool: labels after as many that count as the shorter side of their pair has."""
    found = np.zeros(pair.size, np.bool_)
    for number in np.unique(pair).tolist():
        sides = [np.flatnonzero(side == 2 * number + k) for k in (0, 1)]
        least = min(int(counts[at].sum()) for at in sides)
        for at in sides:
            before = np.cumsum(counts[at]) - counts[at]
            found[at] = before >= least
    return found

"""Packing: every token occurs once, nothing crosses documents, and slow twins agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import permuted, shuffled
from data.rows import packing
from data.rows.packing import Documents

FIELDS = {
    "tokens": np.int32,
    "labels": np.int32,
    "positions": np.int32,
    "segment_ids": np.int32,
    "loss_weights": np.float32,
}
lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def _documents(lengths) -> tuple[np.ndarray, Documents]:
    """Tokens that all differ, so that each token of a row identifies its document and place."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(1000, 1000 + offsets[-1], dtype=np.uint16), Documents(offsets[:-1], offsets[1:])


def _plan(kind, documents, T, seed, cell=None):
    ordered = packing.document_order(documents, seed)
    if kind == "concatenate":
        return packing.Concatenated(packing.concatenate_arrays(ordered), T, seed, cell)
    return packing.BestFitted(packing.best_fit_arrays(ordered, T, cell))


def _obvious_row(tokens, documents, pieces, T):
    """The slow twin of `row_of`: builds a row token by token."""
    row = {name: np.zeros(T, dtype) for name, dtype in FIELDS.items()}
    place = 0
    for segment, (begin, length) in enumerate(zip(pieces.begin, pieces.length, strict=True), start=1):
        document = int(np.searchsorted(documents.begin, begin, "right")) - 1
        for position in range(length):
            at = begin + position
            assert documents.begin[document] <= at < documents.end[document]
            row["tokens"][place] = tokens[at]
            row["positions"][place] = position
            row["segment_ids"][place] = segment
            if at + 1 < documents.end[document]:
                row["labels"][place] = tokens[at + 1]
                row["loss_weights"][place] = 1
            place += 1
    return row


@pytest.mark.parametrize("kind", ["concatenate", "best_fit"])
@given(lengths=lengths_of_documents, T=st.integers(2, 50), seed=st.none() | st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_token_is_an_input_and_a_label_once(kind, lengths, T, seed, epoch):
    tokens, documents = _documents(lengths)
    plan = _plan(kind, documents, T, seed)
    rows = []
    for number in range(plan.num_rows):
        pieces = plan.pieces(epoch, number)
        row = packing.row_of(tokens, packing.places_of(pieces), T)
        obvious = _obvious_row(tokens, documents, pieces, T)
        for name in FIELDS:
            np.testing.assert_array_equal(row[name], obvious[name])
            assert row[name].dtype == FIELDS[name]
        rows.append(row)
    whole = {name: np.concatenate([row[name] for row in rows]) for name in FIELDS}
    inputs = whole["tokens"][whole["segment_ids"] > 0]
    np.testing.assert_array_equal(np.sort(inputs), tokens)
    labels = whole["labels"][whole["loss_weights"] > 0]
    not_first = np.setdiff1d(tokens, tokens[documents.begin])
    np.testing.assert_array_equal(np.sort(labels), not_first)
    assert plan.num_tokens == tokens.size


@pytest.mark.parametrize("kind", ["concatenate", "best_fit"])
@given(
    lengths=lengths_of_documents,
    cell=st.integers(2, 12),
    cells=st.integers(1, 5),
    seed=st.none() | st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_a_segment_lies_in_one_cell_or_begins_one(kind, lengths, cell, cells, seed, epoch):
    """And every token is an input and a label once, with its own document's next token."""
    tokens, documents = _documents(lengths)
    T, plan = cell * cells, _plan(kind, documents, cell * cells, seed, cell)
    rows = [packing.row_of(tokens, packing.places_of(plan.pieces(epoch, i), cell), T) for i in range(plan.num_rows)]
    for row in rows:
        for segment in range(1, row["segment_ids"].max() + 1):
            (places,) = np.nonzero(row["segment_ids"] == segment)
            np.testing.assert_array_equal(places, np.arange(places[0], places[0] + places.size))
            np.testing.assert_array_equal(row["positions"][places], np.arange(places.size))
            np.testing.assert_array_equal(np.diff(row["tokens"][places]), 1)
            assert places[0] % cell == 0 or places[0] // cell == places[-1] // cell
    whole = {name: np.concatenate([row[name] for row in rows]) for name in FIELDS}
    real, counts = whole["segment_ids"] > 0, whole["loss_weights"] > 0
    np.testing.assert_array_equal(np.sort(whole["tokens"][real]), tokens)
    np.testing.assert_array_equal(whole["labels"][counts], whole["tokens"][counts] + 1)
    np.testing.assert_array_equal(np.sort(whole["labels"][counts]), np.setdiff1d(tokens, tokens[documents.begin]))
    assert not any(whole[name][~real].any() for name in FIELDS)


@given(lengths=lengths_of_documents, cell=st.integers(2, 12), cells=st.integers(1, 5))
def test_best_fit_in_cells_splits_only_what_does_not_fit(lengths, cell, cells):
    _, documents = _documents(lengths)
    arrays = packing.best_fit_arrays(documents, cell * cells, cell)
    assert sorted(arrays["length"].tolist()) == sorted(
        min(cell * cells, n - at) for n in lengths for at in range(0, n, cell * cells)
    )


def test_concatenate_in_cells_has_no_padding():
    _, documents = _documents([3, 9, 20, 1, 7])
    plan = _plan("concatenate", documents, 16, None, 4)
    assert [plan.pieces(0, row).length.tolist() for row in range(3)] == [[3, 1, 8, 4], [16], [1, 3, 4]]
    assert [plan.pieces(0, row).continued.tolist() for row in range(3)] == [
        [False, True, False, True],
        [False],
        [False, True, False],
    ]


def test_short_documents_fill_the_cell_where_they_leave_least():
    rows, begins = packing.best_fit_in_cells(np.array([9, 3, 3, 2, 5]), 16, 4)
    assert rows.tolist() == [0, 1, 0, 0, 1] and begins.tolist() == [0, 5, 9, 12, 0]


@given(lengths=lengths_of_documents, T=st.integers(2, 50), epoch=st.integers(0, 3))
def test_concatenate_fills_all_rows_but_one(lengths, T, epoch):
    tokens, documents = _documents(lengths)
    plan = _plan("concatenate", documents, T, 1)
    filled = [int(plan.pieces(epoch, row).length.sum()) for row in range(plan.num_rows)]
    assert filled[:-1] == [T] * (plan.num_rows - 1)
    assert filled[-1] == tokens.size - T * (plan.num_rows - 1) > 0


@given(lengths=lengths_of_documents, T=st.integers(2, 50))
def test_best_fit_splits_only_what_does_not_fit(lengths, T):
    _, documents = _documents(lengths)
    plan = _plan("best_fit", documents, T, 3)
    pieces = [p for row in range(plan.num_rows) for p in zip(*plan.pieces(0, row)[:3], strict=True)]
    by_document = {}
    for begin, length, continued in pieces:
        document = int(np.searchsorted(documents.begin, begin, "right")) - 1
        by_document.setdefault(document, []).append((int(length), bool(continued)))
    for document, found in by_document.items():
        size = lengths[document]
        assert len(found) == -(-size // T)
        assert sum(continued for _, continued in found) == len(found) - 1
    assert plan.num_rows <= len(pieces)


def _obvious_best_fit(lengths, capacity):
    """The slow twin of best-fit packing: longest item first, comparing all bins; ties go to the bin that reached its
    level last."""
    room, touched, chosen = [], [], np.empty(len(lengths), int)
    for time, item in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fits = [(room[b], -touched[b], b) for b in range(len(room)) if room[b] >= lengths[item]]
        if not fits:
            room.append(capacity)
            touched.append(time)
        b = min(fits)[2] if fits else len(room) - 1
        room[b] -= lengths[item]
        touched[b] = time
        chosen[item] = b
    return chosen


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_equals_its_slow_twin(lengths):
    found = packing.best_fit_decreasing(np.array(lengths), 20)
    np.testing.assert_array_equal(found, _obvious_best_fit(lengths, 20))


def test_best_fit_over_several_windows(monkeypatch):
    monkeypatch.setattr(packing, "LOOKAHEAD", 7)
    lengths = np.random.RandomState(0).randint(1, 30, 100).tolist()
    tokens, documents = _documents(lengths)
    plan = _plan("best_fit", documents, 32, 0)
    inputs = np.concatenate(
        [packing.row_of(tokens, packing.places_of(plan.pieces(0, r)), 32)["tokens"] for r in range(plan.num_rows)]
    )
    np.testing.assert_array_equal(np.sort(inputs[inputs > 0]), tokens)


def test_best_fit_fills_rows_well():
    lengths = np.maximum(np.random.RandomState(0).lognormal(5, 1, 4000).astype(int), 2)
    plan = _plan("best_fit", _documents(lengths)[1], 2048, 0)
    assert plan.num_tokens / (plan.num_rows * 2048) > 0.98


def test_epochs_cut_in_different_places_unless_not_shuffled():
    _, documents = _documents([100])
    turning, fixed = (_plan("concatenate", documents, 16, seed) for seed in (4, None))
    first = {epoch: tuple(turning.pieces(epoch, 0).begin.tolist()) for epoch in range(4)}
    assert first[0] == (0,)
    assert len(set(first.values())) > 2
    assert all(fixed.pieces(epoch, 0).begin.tolist() == [0] for epoch in range(4))


def test_orders_are_permutations_determined_by_the_seed():
    orders = [shuffled(1000, seed) for seed in range(3)]
    assert all(sorted(order.tolist()) == list(range(1000)) for order in orders)
    assert not (orders[0] == orders[1]).all()
    for count in (1, 2, 3, 17):
        for seed in (0, 2**63):
            assert sorted(permuted(i, count, seed) for i in range(count)) == list(range(count))


def test_orders_never_change():
    """Existing checkpoints rely on these orders: a run resumes in the order in which it began."""
    assert shuffled(8, 0).tolist() == [3, 0, 2, 4, 1, 7, 6, 5]
    assert [permuted(i, 8, 5) for i in range(8)] == [4, 0, 5, 3, 7, 6, 2, 1]

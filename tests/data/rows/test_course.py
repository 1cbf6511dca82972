"""Stages read on where the stages before them stopped: every token is read once in an epoch, across borders too."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataConfig
from data.rows.course import StageData, open_course
from data.rows.dataset import open_dataset

NAMES = ("a", "b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    for name, count in zip(NAMES, (23, 9), strict=True):
        texts = [json.dumps({"text": f"{name}{i}: " + "lorem ipsum " * (i * 5 % 17)}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(texts))
    return folder


def data(folder, weights=None, end=None, **changes) -> DataConfig:
    """`end`: weight of each source at the end of the stage."""
    weights = dict.fromkeys(NAMES, 1.0) if weights is None else weights
    moves = {} if end is None else {"weight_end": end}
    sources = {n: {"path": str(folder / f"{n}.jsonl"), "weight": weight, **moves} for n, weight in weights.items()}
    fixed = {"sources": sources, "cache_dir": str(folder / "cache"), "sequence_length": 32, "held_out_fraction": 0.2}
    return DataConfig.model_validate(fixed | changes)


def tokens_read(dataset, rows) -> dict[str, list[int]]:
    """The tokens of a stage by source, as places in the source's array, in the order in which they are read."""
    found = collections.defaultdict(list)
    for index in range(rows):
        source, at = dataset.locate(index)
        pieces = source.pieces(at)
        for begin, length in zip(pieces.begin.tolist(), pieces.length.tolist(), strict=True):
            found[source.name] += range(begin, begin + length)
    return found


def times_read(course, seed=0) -> dict[str, np.ndarray]:
    """How often each token of each source is read in the whole course, 0 included."""
    read = collections.defaultdict(list)
    for number, reading in enumerate(course):
        for name, tokens in tokens_read(open_course(course, number, seed=seed), reading.rows).items():
            read[name] += tokens
    found = {}
    for source in {s.name: s for r in course for s in open_dataset(r.config, "train", seed=seed).sources}.values():
        times = np.bincount(read[source.name], minlength=source.store["tokens"].size)
        found[source.name] = times[: source.plan.num_tokens]  # those after them are held out
        assert times[source.plan.num_tokens :].sum() == 0
    return found


STAGES = st.lists(
    st.tuples(
        st.sampled_from([16, 32, 48, 128]),
        st.integers(0, 25),
        st.sampled_from([{"a": 1.0}, {"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"b": 1.0}]),
        st.sampled_from([None, None, 0.5]),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=20)
@given(STAGES, st.booleans(), st.integers(0, 3))
def test_every_token_is_read_once_before_any_is_read_again(folder, stages, shuffle, seed):
    """Over lengths, numbers of rows, sources, weights and cells that change between stages."""
    course = [
        StageData(data(folder, weights, end, sequence_length=T, shuffle=shuffle, cell=T // 2 if cells else None), rows)
        for T, rows, weights, end, cells in stages
    ]
    for name, times in times_read(course, seed).items():
        assert times.max() - times.min() <= 1, name


def test_borders_that_change_no_rows_change_nothing(folder):
    """Three stages of one length and one mixture read what one stage of their rows reads."""
    config = data(folder, {"a": 3.0, "b": 2.0})
    whole = open_dataset(config, "train", seed=1)
    course = [StageData(config, rows) for rows in (7, 0, 12, 80)]
    first = 0
    for number, reading in enumerate(course):
        stage = open_course(course, number, seed=1)
        for index in range(reading.rows):
            (one, at), (other, there) = stage.locate(index), whole.locate(first + index)
            assert (one.name, one.lap.find(at, one.plan)) == (other.name, other.lap.find(there, other.plan))
            np.testing.assert_array_equal(stage.row(index)["tokens"], whole.row(first + index)["tokens"])
        first += reading.rows
    assert open_course(course, 0, seed=1).fingerprint == whole.fingerprint
    assert len({open_course(course, n, seed=1).fingerprint for n in range(4)}) == 3  # the second has no rows


def test_weights_that_move_give_other_rows_by_the_length_of_the_stage(folder):
    fingerprints = [open_course([StageData(data(folder, {"a": 3.0, "b": 1.0}, end), rows)], 0, seed=0).fingerprint
                    for end, rows in ((None, 9), (None, 8), (2.0, 9), (2.0, 8), (1.0, 9))]  # fmt: skip
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 4


def test_a_source_goes_on_after_stages_without_it(folder):
    course = [
        StageData(data(folder, {"a": 1.0}), 5),
        StageData(data(folder, {"b": 1.0}), 3),
        StageData(data(folder), 6),
    ]
    parts = [tokens_read(open_course(course, n, seed=0), r.rows) for n, r in enumerate(course)]
    assert not set(parts[0]["a"]) & set(parts[2]["a"]) and not set(parts[1]["b"]) & set(parts[2]["b"])


def test_stages_whose_rows_the_run_makes_read_nothing_between_others(folder):
    around = StageData(data(folder), 6)
    course = [around, StageData(data(folder, weights={}), 9), around]
    assert open_course(course, 1, seed=0).sources == []
    without = open_course([around, around], 1, seed=0)
    assert tokens_read(open_course(course, 2, seed=0), 6) == tokens_read(without, 6)


def test_a_lap_that_ends_reads_the_next_documents_alone(folder):
    """So the documents after it are whole for a stage of longer rows."""
    course = [StageData(data(folder, {"a": 1.0}, sequence_length=16), 10),
              StageData(data(folder, {"a": 1.0}, sequence_length=128), 3)]  # fmt: skip
    whole = open_dataset(data(folder, {"a": 1.0}, sequence_length=16, shuffle=True), "train", seed=0).sources[0]
    stream = [piece for row in range(whole.plan.num_rows) for piece in _places(whole.plan.pieces(0, row))]
    first, second = (sorted(map(stream.index, tokens_read(open_course(course, n, seed=0), r.rows)["a"]))
                     for n, r in enumerate(course))  # fmt: skip
    assert first == list(range(160))
    assert min(second) >= 160


def _places(pieces) -> list[int]:
    spans = zip(pieces.begin.tolist(), pieces.length.tolist(), strict=True)
    return [at for begin, length in spans for at in range(begin, begin + length)]


def test_rows_past_the_end_of_a_lap_are_its_first(folder):
    """Roll-backs leave batches out, so that a stage may read more rows than it has."""
    course = [StageData(data(folder, {"a": 1.0}), 7), StageData(data(folder, {"a": 1.0}, sequence_length=64), 1)]
    stage = open_course(course, 0, seed=0)
    for index in range(4):
        np.testing.assert_array_equal(stage.row(7 + index)["tokens"], stage.row(index)["tokens"])


def test_fitted_rows_go_on_while_they_are_cut_alike_and_else_begin_again(folder, caplog):
    fitted = data(folder, {"a": 1.0}, packing="best_fit")
    longer = fitted.model_copy(update={"sequence_length": 64})
    course = [StageData(fitted, 4), StageData(fitted, 5), StageData(longer, 3)]
    first, second, third = (open_course(course, n, seed=0) for n in range(3))
    whole = open_dataset(fitted, "train", seed=0)
    np.testing.assert_array_equal(second.row(0)["tokens"], whole.row(4)["tokens"])
    assert first.fingerprint == whole.fingerprint
    assert "data.sources.a: a stage cuts its rows otherwise than the one before: the source begins again" in caplog.text
    assert third.sources[0].lap == (1, 0, None)


def test_a_source_with_other_documents_is_another_source(folder):
    (folder / "c").mkdir(exist_ok=True)
    (folder / "c" / "a.jsonl").write_text(json.dumps({"text": "other words " * 90}))
    other = data(folder, {"a": 1.0}).model_copy(update={"held_out_fraction": 0.5})
    moved = other.model_validate(other.model_dump() | {"sources": {"a": {"path": str(folder / "c" / "a.jsonl")}}})
    course = [StageData(data(folder, {"a": 1.0}), 5), StageData(moved, 2)]
    assert open_course(course, 1, seed=0).sources[0].lap == (0, 0, None)


def test_the_fingerprint_tells_where_a_stage_begins(folder):
    longer = data(folder, sequence_length=64)
    courses = [[StageData(data(folder), rows), StageData(longer, 9)] for rows in (4, 6)]
    assert len({open_course(course, 1, seed=0).fingerprint for course in courses}) == 2
    extended = [StageData(data(folder), 4), StageData(longer, 90)]
    assert open_course(courses[0], 1, seed=0).fingerprint == open_course(extended, 1, seed=0).fingerprint

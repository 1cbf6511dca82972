"""Datasets: rows are a pure function of the config and the row's number."""

import dataclasses
import json
import pathlib
import pickle
import time

import numpy as np
import pytest

from data import commands
from data.config import DataConfig
from data.rows.dataset import open_dataset, split_documents
from maverick_jax.errors import InputError

T = 32


@pytest.fixture
def config(tmp_path) -> DataConfig:
    """Two sources of several documents, with weights 3 to 1."""
    lines = [json.dumps({"text": f"document {i}: " + "lorem ipsum " * (i % 9)}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return _made(tmp_path)


def _sources(folder: pathlib.Path) -> dict[str, dict]:
    return {"a": {"path": str(folder / "a.jsonl"), "weight": 3.0}, "b": {"kind": "synthetic", "documents": 30}}


def _made(folder: pathlib.Path, **changes) -> DataConfig:
    values = {
        "sources": _sources(folder),
        "sequence_length": T,
        "batch_size": 8,
        "cache_dir": str(folder / "cache"),
        **changes,
    }
    return DataConfig.model_validate(values)


def _one_text(folder: pathlib.Path, text: str, **changes) -> DataConfig:
    (folder / "one.txt").write_text(text)
    return _made(folder, sources={"one": {"path": str(folder / "one.txt")}}, **changes)


def check_equal(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
        assert one[name].dtype == other[name].dtype


def _batches(dataset, rows, start, count) -> list[dict[str, np.ndarray]]:
    with dataset.batches(rows, 8, start, count) as batches:
        return list(batches)


def _global(dataset, step) -> dict[str, np.ndarray]:
    """The batch of a step, assembled row by row."""
    rows = [dataset.row(step * 8 + g) for g in range(8)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


# ---- purity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_rows_do_not_depend_on_who_opened_the_dataset(tmp_path, config, packing):
    config = _made(tmp_path, packing=packing)
    one = open_dataset(config, "train", seed=3)
    elsewhere = config.model_copy(update={"cache_dir": str(tmp_path / "other")})
    other = open_dataset(elsewhere, "train", seed=3)
    copy = pickle.loads(pickle.dumps(one.sources[0]))  # noqa: S301  (our own bytes, as workers get them)
    assert one.fingerprint == other.fingerprint
    for index in [0, 1, 17, 999, 10**7]:
        check_equal(one.row(index), other.row(index))
        check_equal(one.sources[0].row(index), copy.row(index))


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_their_rows_of_the_same_batches(config, hosts):
    dataset = open_dataset(config, "train", seed=0)
    parts = [_batches(dataset, list(range(h, 8, hosts)), 2, 3) for h in range(hosts)]
    for number, step in enumerate((2, 3, 4)):
        whole = _global(dataset, step)
        for h in range(hosts):
            check_equal(parts[h][number], {name: field[h::hosts] for name, field in whole.items()})


def test_a_resumed_run_can_begin_at_any_step(config):
    dataset = open_dataset(config, "train", seed=0)
    through = _batches(dataset, [1, 5], 0, 9)
    for start in (0, 4, 8):
        for one, other in zip(through[start:], _batches(dataset, [1, 5], start, 9 - start), strict=True):
            check_equal(one, other)


def test_workers_do_not_change_batches(config):
    dataset = open_dataset(config, "train", seed=0)
    with_workers = open_dataset(config.model_copy(update={"workers": 2}), "train", seed=0)
    assert with_workers.fingerprint == dataset.fingerprint
    for one, other in zip(_batches(dataset, [0, 3, 7], 5, 7), _batches(with_workers, [0, 3, 7], 5, 7), strict=True):
        check_equal(one, other)


def test_iterators_are_endless_until_closed(config):
    dataset = open_dataset(config, "train", seed=0)
    batches = dataset.batches([0], 8, 10**9)
    assert next(batches)["tokens"].shape == (1, T)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    for rows in ([], [8], [-1]):
        with pytest.raises(ValueError, match="rows must be numbers from 0 to 7"):
            dataset.batches(rows, 8, 0)
    with pytest.raises(ValueError, match="start_step"):
        dataset.batches([0], 8, -1)


def test_the_fingerprint_depends_only_on_what_determines_the_rows(tmp_path, config):
    def fingerprint(run_seed=0, **changes):
        return open_dataset(_made(tmp_path, **changes), "train", seed=run_seed).fingerprint

    sources = config.model_dump()["sources"]
    base = fingerprint()
    assert (
        base == fingerprint(workers=3, prefetch=5, cache_dir=str(tmp_path / "other")) == fingerprint(run_seed=9, seed=0)
    )
    changes = [
        {"sequence_length": 16}, {"batch_size": 4}, {"packing": "best_fit"}, {"held_out_fraction": 0.2},
        {"shuffle": False}, {"seed": 1}, {"sources": {"a": sources["a"]}},
        {"sources": {**sources, "a": {**sources["a"], "weight": 2.0}}},
    ]  # fmt: skip
    others = [fingerprint(**change) for change in changes]
    assert len({base, *others}) == 1 + len(changes)
    path = tmp_path / "a.jsonl"
    path.touch()
    assert fingerprint() == base
    path.write_text(path.read_text().replace("document 3:", "Document 3:"))
    assert fingerprint() != base


# ---- order ---------------------------------------------------------------------------------------------------------


def test_an_epoch_of_a_source_contains_each_of_its_tokens_once(config):
    dataset = open_dataset(config, "train", seed=0)
    for source in dataset.sources:
        rows = source.plan.num_rows
        epochs = [np.concatenate([source.row(e * rows + r)["tokens"] for r in range(rows)]) for e in range(3)]
        counts = [np.bincount(epoch, minlength=300) for epoch in epochs]
        assert counts[0].sum() == rows * T
        for other in counts[1:]:
            np.testing.assert_array_equal(counts[0], other)
        assert not np.array_equal(epochs[0], epochs[1])
    assert dataset.num_rows() == sum(source.plan.num_rows for source in dataset.sources)


def test_each_epoch_visits_every_row_in_an_order_of_its_own(config):
    class Visits:
        num_rows = 50

        def pieces(self, epoch, at):
            return at

    source = open_dataset(config, "train", seed=0).sources[0]
    source = dataclasses.replace(source, plan=Visits())  # pyright: ignore
    epochs = [[source.pieces(epoch * 50 + r) for r in range(50)] for epoch in range(3)]
    assert all(sorted(visited) == list(range(50)) for visited in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_mixture_of_the_stream_is_exact(config):
    dataset = open_dataset(config, "train", seed=0)
    names = [dataset.locate(row)[0].name for row in range(400)]
    assert names.count("a") == 300
    assert dataset.shares == {"a": 0.75, "b": 0.25}


def test_seeds_change_the_order_and_without_shuffling_it_is_file_order(tmp_path, config):
    seeded = [open_dataset(config, "train", seed=seed).row(0)["tokens"] for seed in (0, 1)]
    assert not np.array_equal(*seeded)
    plain = open_dataset(_one_text(tmp_path, "abcdefgh" * 40, shuffle=False), "train", seed=0)
    first = plain.row(0)["tokens"]
    assert plain.tokenizer.decode(first) == ("abcdefgh" * 40)[: T - 1]
    check_equal(plain.row(0), plain.row(plain.num_rows()))


def test_labels_and_positions(tmp_path):
    dataset = open_dataset(_one_text(tmp_path, "abcdefgh" * 40, shuffle=False), "train", seed=0)
    one, two = dataset.row(0), dataset.row(1)
    np.testing.assert_array_equal(one["labels"][:-1], one["tokens"][1:])
    assert one["labels"][-1] == two["tokens"][0]
    np.testing.assert_array_equal(one["positions"], np.arange(T))
    np.testing.assert_array_equal(two["positions"], np.arange(T))
    assert one["loss_weights"].tolist() == [1.0] * T


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_corpus_shorter_than_a_row(tmp_path, packing):
    config = _one_text(tmp_path, "abcd", packing=packing, held_out_fraction=0.0)
    dataset = open_dataset(config, "train", seed=0)
    assert dataset.num_rows() == 1
    for epoch in range(3):
        row = dataset.row(epoch)
        tokens = row["tokens"][row["segment_ids"] > 0]
        assert sorted(tokens.tolist()) == sorted([256, *b"abcd", 257])
        assert row["loss_weights"].sum() == 5
        assert not row["tokens"][6:].any() and not row["loss_weights"][6:].any()


# ---- held out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_held_out_tokens_are_never_trained_on(tmp_path, config, packing):
    """Neither as inputs nor as labels, in any epoch. Every token is in one of the splits."""
    config = _made(tmp_path, packing=packing)
    train, held_out = (open_dataset(config, split, seed=0) for split in ("train", "eval"))
    for one, other in zip(train.sources, held_out.sources, strict=True):
        trained, evaluated = _tokens_read(one), _tokens_read(other)
        assert not trained & evaluated
        assert trained | evaluated == set(range(one.store["tokens"].size))
        assert 0.05 < len(evaluated) / one.store["tokens"].size < 0.2


def _tokens_read(source) -> set[int]:
    """Indices, in the token file, of the inputs and labels of three epochs."""
    read = set()
    for index in range(3 * source.plan.num_rows):
        for begin, length, continued in zip(*source.pieces(index)[:3], strict=True):
            read |= set(range(begin, begin + length + bool(continued)))
    return read


def test_eval_reads_every_held_out_row_once_in_order(config):
    dataset = open_dataset(config, "eval", seed=0)
    rows = dataset.num_rows()
    located = [(source.name, at) for source, at in map(dataset.locate, range(rows))]
    assert located == [(s.name, at) for s in dataset.sources for at in range(s.plan.num_rows)]
    again = open_dataset(config, "eval", seed=77)
    check_equal(dataset.row(rows + 1), again.row(1))


def test_sources_are_split_inside_one_document_or_between_several():
    one = np.array([0, 100])
    train, held_out = split_documents(one, 0.1)
    assert (train.begin[0], train.end[0], held_out.begin[0], held_out.end[0]) == (0, 90, 90, 100)
    several = np.array([0, 10, 48, 92, 100])
    train, held_out = split_documents(several, 0.1)
    assert train.end.tolist() == [10, 48, 92] and held_out.begin.tolist() == [92]
    train, held_out = split_documents(several, 0.0)
    assert train.end.tolist() == [10, 48, 92, 100] and held_out.begin.size == 0
    for offsets in (one, several):
        train, held_out = split_documents(offsets, 1.0)
        assert train.begin.size == 0 and held_out.end.tolist() == offsets[1:].tolist()


def test_sources_can_be_held_out_completely_or_not_at_all(tmp_path, config):
    """Some files are used only for evaluation, others only for training."""
    parts = {"a": 0.0, "b": 1.0}
    sources = {name: source | {"held_out_fraction": parts[name]} for name, source in _sources(tmp_path).items()}
    apart = _made(tmp_path, sources=sources)
    train, held_out = (open_dataset(apart, split, seed=0) for split in ("train", "eval"))
    assert train.shares == {"a": 1.0} and [source.name for source in held_out.sources] == ["b"]
    for source in (*train.sources, *held_out.sources):
        assert _tokens_read(source) == set(range(source.store["tokens"].size))
    splits = commands.stats(apart, 0)["splits"]
    assert list(splits["train"]["sources"]) == ["a"] and list(splits["eval"]["sources"]) == ["b"]
    plain = open_dataset(config, "train", seed=0)
    one = {**_sources(tmp_path), "b": sources["b"] | {"held_out_fraction": 0.1}}  # as all sources have
    assert plain.fingerprint != train.fingerprint
    more = sources | {"c": {"kind": "synthetic", "documents": 9, "held_out_fraction": 1.0}}
    grown = _made(tmp_path, sources=more)  # more evaluation data does not change the training data
    assert open_dataset(grown, "train", seed=0).fingerprint == train.fingerprint
    assert open_dataset(grown, "eval", seed=0).fingerprint != held_out.fingerprint
    check_equal(plain.row(5), open_dataset(_made(tmp_path, sources=one), "train", seed=0).row(5))


def test_a_coarse_split_is_logged(caplog):
    train, held_out = split_documents(np.array([0, 50, 100]), 0.1, "s")
    assert (train.end[-1], held_out.begin[0]) == (50, 50)
    assert "source s: its documents are so long that 0.5 of it are held out instead of 0.1" in caplog.text


def test_impossible_splits_are_refused(tmp_path, config):
    whole = {name: source | {"held_out_fraction": 1} for name, source in _sources(tmp_path).items()}
    with pytest.raises(ValueError, match="all are held out"):
        _made(tmp_path, sources=whole)
    with pytest.raises(InputError, match="held_out_fraction is 0"):
        open_dataset(_made(tmp_path, held_out_fraction=0.0), "eval", seed=0)
    with pytest.raises(InputError, match=r"data.sources.one: 3 tokens are too few"):
        open_dataset(_one_text(tmp_path, "a"), "train", seed=0)


# ---- the shipped text, speed, commands -----------------------------------------------------------------------------


def test_shipped_text_is_fast_and_disjoint(tmp_path):
    config = DataConfig.model_validate(
        {"sources": {"t": {"path": "package:tinyshakespeare"}}, "cache_dir": str(tmp_path), "batch_size": 16}
    )
    train, held_out = (open_dataset(config, split, seed=0) for split in ("train", "eval"))
    assert train.sources[0].plan.num_tokens + held_out.sources[0].plan.num_tokens == 1_115_394 + 2
    best = min(_seconds(lambda: [train.row(r) for r in range(16)]) for _ in range(20))
    assert best < 0.004, f"a batch of 16 x 512 took {best * 1e3:.1f} ms"


def _seconds(run) -> float:
    """CPU seconds, which do not depend on other work of the machine."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def test_real_problems(tmp_path, real_data):
    source = {"path": str(real_data / "gsm8k_train_1000.jsonl"), "field": "question"}
    config = _made(tmp_path, sources={"maths": source}, packing="best_fit", sequence_length=512)
    found = commands.stats(config, 0)["splits"]
    assert found["train"]["documents"] + found["eval"]["documents"] == 1000
    assert found["train"]["fill"] > 0.98


def test_commands(config, capsys):
    found = commands.prepare(config, 0)
    train = found["splits"]["train"]
    assert json.loads(json.dumps(found)) == found
    assert train["rows"] == open_dataset(config, "train", seed=0).num_rows()
    assert train["tokens"] == sum(s["tokens"] for s in train["sources"].values())
    assert commands.stats(config, 0)["splits"] == found["splits"]
    commands.show(found)
    assert "steps per epoch" in capsys.readouterr().out
    rows = commands.inspect(config, 0, first=4, count=3)
    assert [row["row"] for row in rows["rows"]] == [4, 5, 6]
    assert sum(run["tokens"] for run in rows["rows"][0]["runs"]) == T
    commands.show(rows)
    shown = capsys.readouterr().out
    assert "row 4 of" in shown and "<|begin_of_text|>" in shown


def test_inspect_never_sends_terminal_commands(tmp_path, capsys):
    config = _one_text(tmp_path, "[bold]\x1b]0;owned\x07\x9b31m" * 3, held_out_fraction=0.0, shuffle=False)
    commands.show(commands.inspect(config, 0, count=1))
    shown = capsys.readouterr().out
    assert "[bold]\u241b]0;owned\u2407" in shown
    assert not any(c in shown for c in "\x1b\x07\x9b")

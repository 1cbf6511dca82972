"""Rows of whole and cut trajectories: tokens keep their kinds and weights, and each label counts once."""

import io
import itertools
import json
import re

import jax
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from data import commands
from data.config import DataConfig
from data.rows import packing
from data.rows.dataset import open_dataset
from data.rows.placement import rows_of_process
from data.rows.weighing import KINDS, NO_KIND
from data.rows.windows import Cuts, Window, windows_of
from data.sources import TrajectoriesConfig
from data.sources.files import ASSETS
from data.trajectories import (
    FORMATS,
    KindWeights,
    Outcome,
    OutcomeWeights,
    TokenKind,
    loss_weights,
    token_kinds,
    toy_shop,
)
from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.sharding import BATCH_AXES, make_mesh
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import render
from maverick_jax.text.chat.dialects import DIALECTS
from tests.data.rows.test_placement import SomeOf
from tests.helpers.trajectory_rows import data_config, short_run, write_runs

BYTES = load_tokenizer("bytes")
ONES = {name: 1.0 for name in KindWeights.model_fields}


def rows_of(dataset):
    return [dataset.row(i) for i in range(dataset.num_rows())]


def segments(row):
    """The fields of each segment, in order."""
    for number in range(1, int(row["segment_ids"].max()) + 1):
        at = row["segment_ids"] == number
        yield {name: field[at] for name, field in row.items()}


# ---- whole trajectories ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_rows_contain_each_trajectory_as_rendered_with_its_kinds_and_weights(dialect, tmp_path):
    weights, outcomes = {"recovery": 3.0, "user": 0.5}, {"failure": 0.125}
    config = data_config(tmp_path, 6, {"dialect": dialect, "outcomes": outcomes}, sequence_length=2048,
                         kind_weights=weights)  # fmt: skip
    found = {bytes(s["tokens"].astype("<i4")): s for row in rows_of(open_dataset(config, "train", seed=0))
             for s in segments(row)}  # fmt: skip
    assert len(found) == 6
    for number in range(6):
        run = short_run(number)
        rendered = render(run.conversation, BYTES, dialect)
        segment = found[rendered.ids.tobytes()]
        of_run = OutcomeWeights(**outcomes).of(run.outcome)
        np.testing.assert_array_equal(segment["labels"], [*rendered.ids[1:], 0])
        np.testing.assert_array_equal(segment[KINDS], [*token_kinds(run, rendered)[1:], NO_KIND])
        expected = loss_weights(run, rendered, KindWeights(**weights), of_run)
        np.testing.assert_array_equal(segment["loss_weights"], [*expected[1:], 0])
        np.testing.assert_array_equal(segment["positions"], np.arange(rendered.ids.size))
        stops = [segment["labels"][i] == BYTES.controls["<|eot|>"] for i in np.flatnonzero(segment["loss_weights"])]
        assert any(stops)


@given(success=st.sampled_from([None, True, False]), reward=st.none() | st.floats(-2, 2), threshold=st.floats(-1, 1))
def test_weights_of_many_outcomes_equal_single_ones(success, reward, threshold):
    weights = OutcomeWeights(success=2.0, failure=3.0, unknown=5.0, threshold=threshold)
    stored = (
        np.array([-1 if success is None else int(success)], np.int8),
        np.array([np.nan if reward is None else reward]),
    )
    assert weights.of_many(*stored).tolist() == [weights.of(Outcome(reward, success))]


def test_changed_weights_do_not_retokenize_but_change_the_fingerprint(tmp_path):
    config = data_config(tmp_path)
    first = open_dataset(config, "train", seed=0)
    made = sorted((tmp_path / "cache").rglob("*"))
    for changes in ({"kind_weights": {"thought": 0.0}}, {"options": {"outcomes": {"failure": 0.5}}}):
        other = open_dataset(data_config(tmp_path, **changes), "train", seed=0)
        assert sorted((tmp_path / "cache").rglob("*")) == made
        assert other.fingerprint != first.fingerprint
        pairs = list(zip(rows_of(other), rows_of(first), strict=True))
        assert any((a["loss_weights"] != b["loss_weights"]).any() for a, b in pairs)
        for a, b in pairs:
            np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_trajectories_with_weights_of_one_equal_packed_texts(tmp_path):
    """All fields except `kinds` equal the fields of plain packing to the bit."""
    dataset = open_dataset(data_config(tmp_path, kind_weights=ONES, options={}), "train", seed=0)
    source = dataset.sources[0]
    # a message with its own weight keeps it, so take trajectories without one
    for i, row in enumerate(rows_of(dataset)):
        plain = packing.row_of(source.store["tokens"], packing.places_of(source.pieces(i)), source.length)
        own = np.isin(row["loss_weights"], [0.25])
        for name, field in plain.items():
            np.testing.assert_array_equal(np.where(own, 0, row[name]), np.where(own, 0, field), err_msg=name)
            assert row[name].dtype == field.dtype


def test_texts_and_trajectories_mix(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 200)
    config = data_config(tmp_path)
    sources = {"shop": config.sources["shop"].model_dump(), "text": {"path": str(tmp_path / "a.txt")}}
    mixed = open_dataset(data_config(tmp_path, sources=sources, kind_weights={"document": 0.5}), "train", seed=0)
    by_source = {mixed.locate(i)[0].name: mixed.row(i) for i in range(4)}
    assert {row[KINDS].dtype for row in by_source.values()} == {np.dtype(np.uint8)}
    text = by_source["text"]
    assert set(text[KINDS][text["segment_ids"] > 0]) <= {TokenKind.DOCUMENT, NO_KIND}
    np.testing.assert_array_equal(text["loss_weights"], 0.5 * (text[KINDS] == TokenKind.DOCUMENT))
    alone = open_dataset(data_config(tmp_path, sources={"text": sources["text"]}), "train", seed=0)
    assert KINDS not in alone.row(0) and set(alone.row(0)["loss_weights"]) == {1.0}


# ---- cut trajectories ------------------------------------------------------------------------------------------------

lengths_of_turns = st.lists(st.integers(1, 40), min_size=1, max_size=20)


@given(turns=lengths_of_turns, parts=st.integers(0, 3), T=st.integers(8, 60), share=st.sampled_from([0, 0.25, 0.9]))
def test_windows_contain_every_token_once_and_cut_only_long_turns(turns, parts, T, share):
    """Token 7 begins the text, and the first turn begins after it. The context is the first `parts` turns."""
    begins = 8 + np.concatenate([[0], np.cumsum(turns)])
    begin, end, context = 7, int(begins[-1]), int(begins[min(parts, len(turns) - 1)]) - 7 if parts else 0
    context = context if context > 1 else 0
    cuts = Cuts()
    windows = list(windows_of(begin, end, begins[:-1], context, T, share, cuts))
    assert windows[0].begin == begin and windows[-1].end == end
    assert all(a.end == b.begin for a, b in itertools.pairwise(windows))
    assert all(w.begin < w.end and w.size <= T for w in windows)
    if end - begin <= T:
        assert len(windows) == 1 and cuts == Cuts()
        return
    repeats = context if context <= T * 3 // 4 else 0
    assert cuts.runs == 1 and cuts.windows == len(windows) and cuts.contexts_not_repeated == (repeats != context)
    for before, window in itertools.pairwise(windows):
        assert window.context == repeats and begin + repeats <= window.overlap <= window.begin
        inside = window.begin not in begins
        least = int(inside and repeats > 0)  # a label inside a turn follows its own token, and not the context
        assert least <= window.begin - window.overlap <= max(share * (T - repeats), least)
        turn = begins[np.searchsorted(begins, window.begin, "right")] - window.begin
        if inside:  # cut inside, so the turn is longer than the room after the context
            of_turn = begins[np.searchsorted(begins, window.begin) - 1]
            assert window.begin + turn - max(of_turn, before.begin) > T - repeats - max(share * (T - repeats), 1) - 1
        if turn <= T - repeats - least:
            assert window.end >= window.begin + turn  # a turn that fits is whole
    assert cuts.repeated_tokens == sum(w.context + w.begin - w.overlap for w in windows)


@pytest.mark.parametrize(("share", "repeated"), [(0.0, 1), (0.01, 1), (0.25, 4), (0.5, 8)])
def test_a_window_inside_a_long_turn_repeats_the_turns_last_tokens(share, repeated):
    """A context of 4 tokens leaves a room of 16; the second turn is longer than three windows."""
    windows = list(windows_of(0, 64, np.array([0, 4]), 4, 20, share, Cuts()))
    assert len(windows) > 3
    assert {window.begin - window.overlap for window in windows[1:-1]} == {repeated}
    assert 0 < windows[-1].begin - windows[-1].overlap <= repeated  # fewer if the rest of the turn fits only then
    assert all(window.context == 4 for window in windows[1:])
    assert all(window.size == 20 for window in windows[:-1])


def test_a_window_at_the_begin_of_a_turn_repeats_nothing_with_an_overlap_of_0():
    windows = windows_of(0, 40, np.arange(0, 40, 4), 4, 20, 0, Cuts())
    assert list(windows) == [Window(0, 0, 0, 20), Window(4, 20, 20, 36), Window(4, 36, 36, 40)]


def test_a_context_that_leaves_less_than_two_tokens_is_not_repeated():
    cuts = Cuts()
    windows = list(windows_of(0, 12, np.array([0, 3]), 3, 4, 0, cuts))
    assert cuts.contexts_not_repeated == 1 and [window.context for window in windows] == [0] * len(windows)


@pytest.mark.parametrize("T", [48, 128, 400])
@pytest.mark.parametrize("overlap", [0.0, 0.01, 0.25])
def test_each_label_of_a_cut_trajectory_counts_once_and_follows_its_prefix(T, overlap, tmp_path):
    dataset = open_dataset(data_config(tmp_path, options={"overlap": overlap}, sequence_length=T), "train", seed=0)
    source = dataset.sources[0]
    tokens, offsets, kinds, turns = (source.store[name] for name in ("tokens", "offsets", "kinds", "turns"))
    counted = np.zeros(tokens.size, int)
    weights = np.zeros(tokens.size)
    for i, row in enumerate(rows_of(dataset)):
        places = packing.places_of(source.pieces(i))
        label = places.label[places.counts]
        follows = places.token[places.counts] == label - 1
        assert np.isin(label[~follows], turns).all()  # only the first token of a turn may follow the context
        np.add.at(counted, label, 1)
        np.add.at(weights, label, row["loss_weights"][: places.token.size][places.counts])
        np.testing.assert_array_equal(row[KINDS][: places.token.size][places.counts], kinds[label])
        for segment in segments(row | {"token": np.pad(places.token, (0, T - places.token.size))}):
            run = np.searchsorted(offsets, segment["token"], "right") - 1
            assert set(run) == {run[0]}  # nothing from another trajectory
            assert (np.diff(segment["token"]) > 0).all()  # and in order
            np.testing.assert_array_equal(segment["positions"], np.arange(run.size))
            np.testing.assert_array_equal(segment["labels"][:-1], segment["tokens"][1:])
    expected = np.ones(tokens.size, int)
    expected[offsets[:-1]] = 0
    np.testing.assert_array_equal(counted, expected)
    whole = [loss_weights(run, render(run.conversation, BYTES)) for run in map(short_run, range(6))]
    np.testing.assert_array_equal(weights, np.concatenate(whole) * expected)
    found = commands.stats(dataset.config, 0)["splits"]["train"]["sources"]["shop"]
    assert found["cut"]["runs"] > 0 and found["cut"]["windows"] > found["cut"]["runs"]
    assert sum(kind["tokens"] for kind in found["kinds"].values()) == tokens.size - 6
    assert 0 < found["fill"] <= 1 and found["tokens"] == tokens.size


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_label_counts_once_in_an_epoch_in_which_four_hosts_become_two(accumulation, tmp_path):
    """Each process of a job reads its rows from its own data set; two of the processes leave after three steps."""
    config = data_config(tmp_path, 40, {"outcomes": {"failure": 0.5}}, sequence_length=400, batch_size=8, shuffle=True)
    opened = lambda: open_dataset(config, "train", seed=3)
    sharding = NamedSharding(
        make_mesh({"data": 4, "tensor": 2}, jax.devices()[:8]), PartitionSpec(None, BATCH_AXES, None)
    )
    shape = (accumulation, 8 // accumulation, 400)
    devices = list(sharding.mesh.devices.flat)
    count = opened().num_rows()
    steps = -(-count // 8)
    assert steps > 5
    read: dict[int, dict] = {}
    for hosts, start, stop in ((4, 0, 3), (2, 3, steps)):
        for host in range(hosts):
            mine = devices[host * 8 // hosts : (host + 1) * 8 // hosts]
            numbers = rows_of_process(SomeOf(sharding, mine), shape)
            assert len(numbers) == 8 // hosts
            with opened().batches(numbers, 8, start, stop - start) as batches:
                for step, batch in enumerate(batches, start):
                    for place, number in enumerate(numbers):
                        assert step * 8 + number not in read
                        read[step * 8 + number] = {name: field[place] for name, field in batch.items()}
    assert sorted(read) == list(range(steps * 8))
    text = lambda row: bytes(row["tokens"]) + bytes(row["loss_weights"])
    every = [text(row) for row in rows_of(opened())]
    assert len(set(every)) == count and sorted(text(read[i]) for i in range(count)) == sorted(every)
    runs = [(run, render(run.conversation, BYTES)) for run in map(short_run, range(40))]
    expected = [
        loss_weights(run, said, KindWeights(), OutcomeWeights(failure=0.5).of(run.outcome))[1:] for run, said in runs
    ]
    learnt = sum(read[i]["loss_weights"].sum(dtype=float) for i in range(count))
    assert learnt == pytest.approx(sum(w.sum(dtype=float) for w in expected), rel=1e-6)


# ---- malformed input -------------------------------------------------------------------------------------------------


def test_fields_without_effect_are_logged_and_counted_by_name(tmp_path, caplog):
    record = json.loads(ours.write(short_run(0)))
    record["mood"], record["messages"][-1]["speed"] = "good", 3
    write_runs(tmp_path / "runs.jsonl", 2, json.dumps(record))
    with caplog.at_level("WARNING"):
        stats = commands.stats(data_config(tmp_path), 0)
    assert "source shop: 2 fields of unknown meaning have no effect: " in caplog.text
    out = io.StringIO()
    commands.show(stats, Console(file=out, width=300))
    assert "fields without effect: messages[].speed (1), mood (1)" in out.getvalue()


def test_malformed_trajectories_stop_or_are_counted(tmp_path):
    bad = ['{"format": "maverick-trajectory", "version": 1, "messages": []}', "{"]
    thought = json.loads(ours.write(short_run(0)))
    thought["messages"][-1]["reasoning_content"] = "hm"  # the tokenizer `bytes` has no control token for thoughts
    write_runs(tmp_path / "runs.jsonl", 3, "\n".join([*bad, json.dumps(thought)]))
    with pytest.raises(InputError, match=r"runs\.jsonl: record 3, line 4: messages"):
        open_dataset(data_config(tmp_path), "train", seed=0)
    stats = commands.stats(data_config(tmp_path, options={"malformed": "skip"}), 0)
    read = stats["splits"]["train"]["sources"]["shop"]["read"]
    assert (read["records"], read["trajectories"], read["malformed"]) == (6, 3, 3)
    assert [problem["line"] for problem in read["problems"]] == [4, 5, 6]
    assert "reasoning_thinking_start" in read["problems"][2]["reason"]
    out = io.StringIO()
    commands.show(stats, Console(file=out, width=300))
    assert "malformed 3" in out.getvalue() and "record 4, line 5" in out.getvalue()


def test_sources_with_too_few_trajectories_are_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"no trajectory can be read of 1 records; the first: runs\.jsonl: record 0"):
        open_dataset(data_config(tmp_path, options={"malformed": "skip", "format": "openai"}), "train", seed=0)
    write_runs(tmp_path / "runs.jsonl", 1)
    with pytest.raises(InputError, match=r"holds one trajectory, which is not split; set held_out_fraction: 0"):
        open_dataset(data_config(tmp_path, held_out_fraction=0.5), "train", seed=0)


def test_an_interrupted_cache_is_rebuilt(tmp_path, monkeypatch):
    import data.cache.tokenize_trajectories as runs

    whole = open_dataset(data_config(tmp_path), "train", seed=0).sources[0].store.digest
    calls = iter(range(3))

    def dying(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(runs, "render", dying)
    again = data_config(tmp_path, cache_dir=str(tmp_path / "other"))
    with pytest.raises(KeyboardInterrupt):
        open_dataset(again, "train", seed=0)
    assert list((tmp_path / "other").rglob("*.partial/tokens.bin"))
    monkeypatch.undo()
    assert open_dataset(again, "train", seed=0).sources[0].store.digest == whole


def test_settings_without_effect_are_refused(tmp_path):
    text = {"text": {"path": str(tmp_path), "trajectories": {"malformed": "skip"}}}
    with pytest.raises(pydantic.ValidationError, match=r"sources.text.files.trajectories\n  Extra inputs"):
        DataConfig(sources=text)
    with pytest.raises(pydantic.ValidationError, match="kind_weights: requires a source with kind: trajectories"):
        DataConfig(sources={"text": {"path": "x"}}, kind_weights={"user": 1.0})
    choices = lambda name: TrajectoriesConfig.model_json_schema()["properties"][name]["anyOf"][0]["enum"]
    assert choices("format") == list(FORMATS) and choices("dialect") == list(DIALECTS)


# ---- shipped trajectories, and display -------------------------------------------------------------------------------


def test_the_shipped_trajectories_come_from_the_generator_and_have_every_kind():
    made = toy_shop.generate()
    file = ASSETS / "toy_shop.jsonl"
    assert file.read_text().splitlines() == [ours.write(run) for run in made]
    assert file.stat().st_size < 300_000 and len(made) == 60
    kinds = {TokenKind(k) for run in made for k in np.unique(token_kinds(run, render(run.conversation, BYTES)))}
    assert kinds == set(TokenKind) - {TokenKind.IMAGE, TokenKind.DOCUMENT, TokenKind.LATENT}
    assert {"no_tool_fits", "no_tool_needed"} <= {run.provenance.task for run in made}
    assert {run.outcome.success for run in made} == {True, False}


def test_inspect_shows_kinds_and_weights(tmp_path):
    config = data_config(tmp_path, sequence_length=128)
    found = commands.inspect(config, 0, count=20)
    runs = found["rows"][0]["runs"]
    row = open_dataset(config, "train", seed=0).row(0)
    real = row["segment_ids"] > 0
    assert "".join(run["text"] for run in runs) == BYTES.decode(row["tokens"][real], controls=True)
    assert sum(run["loss_weight"] * run["tokens"] for run in runs) == pytest.approx(found["rows"][0]["trained"])
    everything = [run for shown in found["rows"] for run in shown["runs"]]
    recovery = next(run for run in everything if run["kind"] == "recovery")
    assert recovery["loss_weight"] == 1.5 and "book(n=" in recovery["text"]
    assert any(run["kind"] is None and run["loss_weight"] == 0 and run["tokens"] > 1 for run in everything)  # repeated
    out = io.StringIO()
    commands.show(found, Console(file=out, width=200, force_terminal=True))
    assert "recovery 1.5" in out.getvalue() and "one color per token kind" in out.getvalue()


def test_inspect_marks_learned_tokens_without_colors(tmp_path):
    found = commands.inspect(data_config(tmp_path, sequence_length=128), 0, count=20)
    out = io.StringIO()
    commands.show(found, Console(file=out, width=10_000, force_terminal=False))
    legend, *shown = out.getvalue().splitlines()
    assert "\u27e6text\u27e7: learned tokens" in legend
    text = "\n".join(shown)
    runs = [run for row in found["rows"] for run in row["runs"]]
    recovery = next(run for run in runs if run["kind"] == "recovery")
    assert f"\u27e61.5:{recovery['text']}\u27e7" in text
    learned = "".join(re.findall("\u27e6(?:[0-9.]+:)?(.*?)\u27e7", text, re.DOTALL))
    assert learned == "".join(run["text"] for run in runs if run["loss_weight"]).translate(commands._PICTURES)

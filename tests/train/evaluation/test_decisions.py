"""Decisions of turns, their metrics by teacher forcing and by generation, and balanced weights of their classes, for
handwritten trajectories."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from data import commands
from data.rows.dataset import open_dataset
from data.rows.turns import turns_of
from data.rows.weighing import CHOICES
from data.trajectories import Outcome, Step, Trajectory
from data.trajectories.decisions import (
    ARGUMENTS,
    CLOSES,
    CLOSES_SHIFT,
    DECIDES,
    NAME,
    Decision,
    balance,
    choices,
    count,
    decision_of,
)
from data.trajectories.formats import ours
from maverick_jax.errors import InputError
from maverick_jax.inference.answers import answers
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.ops.argmax import argmax_token, argmax_token_reference
from maverick_jax.ops.stream import stream_spec
from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, Tool, ToolCall, find_dialect, render
from maverick_jax.text.chat.dialects import DIALECTS
from tests.helpers import tiny
from tests.helpers.folders import bytes_model
from tests.helpers.trajectory_rows import data_config
from train.evaluate import evaluate
from train.evaluation import decisions
from train.evaluation.generated import generated
from train.evaluation.tables import show
from train.objectives import TrajectoryTuning, decision_counts
from train.objectives.decision_counts import DECISIONS, counts
from train.optimizers import AdamW
from train.step import eval_step

BYTES = load_tokenizer("bytes")
TOOLS = (Tool("book", "Book.", {"type": "object"}), Tool("drop", "Drop.", {"type": "object"}))
RULES = ShardingRules()


def says(text, **known):
    return Step(Message(Role.ASSISTANT, text), **known)


def calls(name, said="", **arguments):
    return Step(Message(Role.ASSISTANT, said, calls=(ToolCall(name, arguments),)))


def user(text):
    return Step(Message(Role.USER, text))


def result(text):
    return Step(Message(Role.TOOL, text))


def run_of(*steps, tools=TOOLS):
    return Trajectory(steps, tools, Outcome(1.0))


RUNS = (
    run_of(user("a?"), calls("book", n=1), result("ok"), says("Done.")),
    run_of(user("b"), says("Which?"), user("2"), calls("drop", said="So.", n=2), result("ok"), says("Dropped.")),
    run_of(user("Sing."), says("I cannot.")),
    run_of(user("c"), says("(One or two?)"), user("Bye"), says("Bye.")),
)


def written(path, runs=RUNS):
    path.write_text("".join(ours.write(run) + "\n" for run in runs))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decisions")
    written(folder / "runs.jsonl")
    return open_dataset(data_config(folder, sequence_length=1024), "train", seed=0)


# ---- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "asks"), [
    ("Which?", True), ("Which? ", True), ('He said "which?"', True), ("(Which?)*\n", True), ("Which\uff1f", True),
    ("Why? Because.", False), ("Say which one.", False), ("?!", False), ("?", True),
])  # fmt: skip
def test_a_text_that_ends_in_a_question_asks(text, asks):
    assert decision_of(says(text)) is (Decision.ASK if asks else Decision.ANSWER)


def test_a_message_may_declare_its_decision():
    assert decision_of(says("Tell me which.", extra={"decision": "ask"})) is Decision.ASK
    assert decision_of(says("Who knows?", extra={"decision": "answer"})) is Decision.ANSWER
    assert decision_of(says("Who knows?", extra={"decision": ["ask"]})) is Decision.ASK
    both = Step(Message(Role.ASSISTANT, "Right?", calls=(ToolCall("book", {}),)), extra={"decision": "answer"})
    assert decision_of(both) is Decision.CALL


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_tokens_of_decisions(dialect):
    """With byte tokens each token is a character, so the marked tokens must spell the expected text."""
    for run in RUNS:
        rendered = render(run.conversation, BYTES, dialect)
        found = choices(run, rendered, BYTES)
        own = [(i, step) for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT]
        at = np.flatnonzero(found & DECIDES)
        assert [found[i] & DECIDES for i in at] == [decision_of(step) for _, step in own]
        assert count(found).sum() == len(own)
        spelt = lambda where, ids=rendered.ids: BYTES.decode(ids[where], controls=True)
        for i, (_, step) in zip(at, own, strict=True):
            if not step.message.calls:
                assert spelt([i]) == step.message.text[0]
            elif step.message.text or dialect == "hugging_face":
                assert spelt([i]) == "<|python_start|>"
            else:
                assert spelt([i]) == ("[" if dialect == "meta_pythonic" else "{")
        assert spelt(found & NAME > 0) == "".join(call.name for _, s in own for call in s.message.calls)
        for _, call in [(i, call) for i, s in own for call in s.message.calls]:
            number = str(call.arguments["n"])
            assert number in spelt(found & ARGUMENTS > 0)
        closing = np.flatnonzero(found >> CLOSES_SHIFT & DECIDES)
        assert [found[i] >> CLOSES_SHIFT & DECIDES for i in closing] == [
            decision_of(step) for _, step in own if not step.message.calls
        ]
        last = [step.message.text.rstrip(")")[-1] for _, step in own if not step.message.calls]
        assert [spelt([i]) for i in closing] == last


# ---- by teacher forcing ----------------------------------------------------------------------------------------------


def rows_of(data):
    rows = [data.row(i) for i in range(data.num_rows())]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@functools.cache
def counting():
    return jax.jit(lambda *fields: counts(*fields, BYTES.vocab_size, RULES))


def told(data, guessed):
    rows = rows_of(data)
    spec = jax.P(*RULES("batch", "length"))
    found = counting()(*[jax.device_put(x, spec) for x in (guessed, rows["labels"], rows[CHOICES])])
    return decisions.decision_metrics({DECISIONS: jax.device_get(found)}, data)


def guesses(data, changes):
    """The labels with `changes` applied, each (bits of `choices`, index among the tokens with these bits, guess
    instead)."""
    rows = rows_of(data)
    guessed = rows["labels"].copy()
    for bits, kind, which, character in changes:
        found = np.argwhere((rows[CHOICES] & bits) == kind)
        guessed[tuple(found[which])] = BYTES.encode(character)[0] if len(character) == 1 else BYTES.controls[character]
    return guessed


ALL = {"call": 2, "answer": 4, "ask": 2}
ONES = dict.fromkeys(ALL, 1.0)
RATES = {"over_call": 0.0, "under_call": 0.0, "name_accuracy": 1.0, "arguments_exact": 1.0}
CASES = {
    "all right": ([], {}, {}),
    "a call not made": (
        [(DECIDES, Decision.CALL, 0, "N")],
        {"recall": {"call": 0.5}, "f1": {"call": 2 / 3}},
        {"under_call": 0.5},
    ),
    "another way to call, and to ask": (
        [(DECIDES, Decision.CALL, 1, "["), (CLOSES, Decision.ASK << CLOSES_SHIFT, 0, "!"),
         (CLOSES, Decision.ANSWER << CLOSES_SHIFT, 0, ";")],
        {"precision": {"answer": 4 / 5}, "recall": {"ask": 0.5}, "f1": {"answer": 8 / 9, "ask": 2 / 3}},
        {},
    ),
    "calls where it answered and asked": (
        [(DECIDES, Decision.ANSWER, 0, "["), (DECIDES, Decision.ASK, 0, "<|python_start|>"),
         (DECIDES, Decision.ANSWER, 1, "X")],
        {"precision": {"call": 0.5}, "f1": {"call": 2 / 3}},
        {"over_call": 2 / 6},
    ),
    "a question instead of an answer": (
        [(CLOSES, Decision.ANSWER << CLOSES_SHIFT, 3, "?")],
        {"precision": {"ask": 2 / 3}, "recall": {"answer": 0.75}, "f1": {"answer": 6 / 7, "ask": 0.8}},
        {},
    ),
    "one character of a name, two of the arguments": (
        [(NAME, NAME, 1, "x"), (ARGUMENTS, ARGUMENTS, 0, "x"), (ARGUMENTS, ARGUMENTS, -1, "x")],
        {},
        {"name_accuracy": 0.5, "arguments_exact": 0.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_guesses_change_the_right_metrics(case, data, mesh_of):
    changes, by_class, rates = CASES[case]
    expected = {"decisions": ALL, "call_rates": RATES | rates}
    expected |= {f"decision_{name}": ONES | by_class.get(name, {}) for name in ("precision", "recall", "f1")}
    with mesh_of(data=1):
        found = told(data, guesses(data, changes))
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name


def test_metrics_that_divide_by_zero_are_left_out(tmp_path, mesh_of):
    written(tmp_path / "runs.jsonl", RUNS[2:3])
    data = open_dataset(data_config(tmp_path, sequence_length=1024), "train", seed=0)
    with mesh_of(data=1):
        found = told(data, rows_of(data)["labels"])
    assert found["decisions"] == {"call": 0, "answer": 1, "ask": 0}
    assert found["decision_recall"] == {"answer": 1.0} and found["call_rates"] == {"over_call": 0.0}


def test_names_at_the_border_of_rows_are_separate(mesh_of):
    part = np.zeros((8, 5), bool)
    part[0, 3:] = part[1, :2] = part[2, 1:2] = part[2, 3] = True
    right = np.ones((8, 5), bool)
    right[1, 0] = right[2, 2] = right[2, 3] = False
    found = decision_counts._whole(jnp.asarray(part), jnp.asarray(right))
    assert found.tolist() == [4, 2]  # the name that ends a row, and the pair [2, 1]


def test_counts_are_the_same_on_any_mesh(mesh_of):
    rng = np.random.default_rng(1)
    fields = [
        rng.integers(0, high, (4, 40)).astype(dtype) for high, dtype in ((3, np.int32), (3, np.int32), (64, np.uint8))
    ]
    found = []
    for sizes in ({"data": 1}, {"data": 4}, {"data": 2, "tensor": 2}, {"data": 2, "context": 4}):
        with mesh_of(**sizes):
            split = RowSplit.of(40, RULES, sizes)
            placed = [jax.device_put(split.split(x, 1), jax.P(*RULES("batch", "length"))) for x in fields]
            found.append(jax.device_get(counting()(*placed)))
    guessed, labels, of = fields
    right, case = guessed == labels, of & DECIDES
    assert found[0]["right"][:3].tolist() == [(right & (case == i)).sum() for i in (1, 2, 3)]
    assert found[0]["wrong"][2, :3].tolist() == [
        (~right & (case == 3) & (guessed == token)).sum() for token in range(3)
    ]
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, found[0])


@pytest.mark.parametrize("sizes", [{"tensor": 1}, {"tensor": 2}, {"tensor": 4}, {"data": 2, "tensor": 2}])
@pytest.mark.parametrize("chunk", [None, 5])
def test_the_most_likely_token_equals_that_of_whole_logits(sizes, chunk, mesh_of):
    B, T, D, V = 4, 8, 8, 24
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(B, T, D)).astype(np.float32), rng.normal(size=(D, V)).astype(np.float32)
    head[:, 13] = head[:, 20] = head[:, 2]  # equals, in several parts
    expected = np.asarray(argmax_token_reference(jnp.asarray(hidden), jnp.asarray(head)))
    assert 2 in expected
    with mesh_of(**sizes):
        placed = jax.device_put(hidden, stream_spec(RULES, T, None))
        assert ("tensor" in axes_tuple(placed.sharding.spec[1])) == (sizes["tensor"] > 1)
        weight = jax.device_put(head, RULES.compute("embed", "vocab"))
        found = jax.jit(lambda h, w: argmax_token(h, w, rules=RULES, chunk=chunk))(placed, weight)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "most"), [((8, 1, 1), 100), ((80, 15, 5), 2), ((98, 1, 1), 3), ((5, 0, 5), 4), ((7, 0, 0), 2)]
)
def test_balanced_classes_have_equal_weight_up_to_a_cap(turns, most):
    turns = np.array(turns)
    factors = balance(turns, most)
    assert factors[0] == 1 and (factors <= np.float32(most)).all() and (factors[1:][turns == 0] == 1).all()
    assert (turns * factors[1:]).sum() == pytest.approx(turns.sum())
    free = (turns > 0) & (factors[1:] < most)
    assert np.ptp((turns * factors[1:])[free]) == pytest.approx(0, abs=1e-4)


def test_decisions_of_training_data_are_balanced(data, tmp_path):
    written(tmp_path / "runs.jsonl", [*RUNS, RUNS[2], run_of(user("x"), says("y", weight=0.5))])
    found = [
        open_dataset(data_config(tmp_path, options=options, sequence_length=1024), "train", seed=0)
        for options in ({}, {"balance_decisions": 1.5})
    ]
    plain, balanced = map(rows_of, found)
    factors = balance(np.array([2, 6, 2]), 1.5)
    own = plain["loss_weights"] == 0.5
    assert own.sum() == 2  # and its stop token; a message's own decision is kept
    expected = np.where(own, 0.5, plain["loss_weights"] * factors[plain[CHOICES] & DECIDES])
    np.testing.assert_array_equal(balanced["loss_weights"], expected.astype(np.float32))
    assert (balanced["loss_weights"] != plain["loss_weights"]).sum() == 9
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].sources[0].store.path == found[1].sources[0].store.path


def test_held_out_trajectories_do_not_affect_the_balance(tmp_path):
    written(tmp_path / "runs.jsonl", [*RUNS[:2], *RUNS[2:] * 4])
    config = data_config(tmp_path, options={"balance_decisions": 9.0}, sequence_length=1024, held_out_fraction=0.4)
    splits = [open_dataset(config, split, seed=0) for split in ("train", "eval")]
    train, held_out = (dataset.sources[0] for dataset in splits)
    turns = train.store["decisions"].reshape(-1, 3)[train.documents.start : train.documents.stop].sum(axis=0)
    assert 0 < turns.sum() < train.store["decisions"].sum() and train.documents.stop == held_out.documents.start
    for source in (train, held_out):
        np.testing.assert_array_equal(source.weighing.decisions, balance(turns, 9.0))


def test_stats_count_decisions_and_trajectories_without_calls(tmp_path):
    written(tmp_path / "runs.jsonl", [*RUNS, run_of(user("x"), says("y"), tools=())])
    found = commands.stats(data_config(tmp_path), 0)["splits"]["train"]["sources"]["shop"]
    assert found["decisions"] == {"call": 2, "answer": 5, "ask": 2, "runs_without_call": 2}
    out = io.StringIO()
    commands.show(commands.stats(data_config(tmp_path), 0), Console(file=out, width=300))
    assert "decisions: call 2, answer 5, ask 2, runs without call 2" in out.getvalue()


# ---- by generation ---------------------------------------------------------------------------------------------------


def test_a_turn_has_a_prompt_and_an_answer(data):
    found = list(turns_of(data))
    expected = [(run, i) for run in RUNS for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT]
    assert [turn.decision for turn in found] == [decision_of(run.steps[i]) for run, i in expected]
    for turn, (run, i) in zip(found, expected, strict=True):
        before = Conversation(tuple(step.message for step in run.steps[:i]), run.tools)
        assert turn.prompt == render(before, BYTES, add_generation_prompt=True).ids.tolist()
        reply = find_dialect(turn.dialect).parse_calls(turn.said, BYTES)
        message = run.steps[i].message
        assert (reply.text, tuple(reply.calls)) == (message.text, tuple(message.calls))


STOP = BYTES.controls["<|eot|>"]
WRITTEN = {
    "as the run": ({}, {}, {}),
    "arguments in another order": ({}, {}, {}),
    "another argument": ({1: '[drop(n=3, m="x")]'}, {}, {"arguments_exact": 0.5}),
    "a number of another type": ({1: '[drop(n=2.0, m="x")]'}, {}, {"arguments_exact": 0.5}),
    "another tool": ({0: "[drop(n=1)]"}, {}, {"name_accuracy": 0.5, "arguments_exact": 0.5}),
    "no call": (
        {0: "Well."},
        {"recall": {"call": 0.5}, "f1": {"call": 2 / 3, "answer": 2 / 3}, "precision": {"answer": 0.5}},
        {"under_call": 0.5, "name_accuracy": 0.5, "arguments_exact": 0.5},
    ),
    "no call that can be read": (
        {0: "[book(n="},
        {"recall": {"call": 0.5}, "f1": {"call": 2 / 3}},
        {"under_call": 0.5, "name_accuracy": 0.5, "arguments_exact": 0.5, "unparsable": 0.25},
    ),
    "a call instead of a question": (
        {2: "[book(n=1)]"},
        {"precision": {"call": 2 / 3}, "recall": {"ask": 0.0}, "f1": {"call": 0.8, "ask": 0.0}},
        {"over_call": 0.5},
    ),
    "it does not end": ({3: None}, {}, {"unfinished": 0.25}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_generated_answers_are_judged(case, tmp_path):
    runs = [
        run_of(user("a"), calls("book", n=1)),
        run_of(user("b"), calls("drop", m="x", n=2)),
        run_of(user("c"), says("Which?")),
        run_of(user("d"), says("Yes.")),
    ]
    written(tmp_path / "runs.jsonl", runs)
    data = open_dataset(data_config(tmp_path, sequence_length=1024), "train", seed=0)
    changes, by_class, rates = WRITTEN[case]
    drop = '[drop(n=2, m="x")]' if case.startswith("arguments") else '[drop(m="x", n=2)]'
    texts = ["[book(n=1)]", drop, "Which?", "Yes."]
    texts = [changes.get(i, text) for i, text in enumerate(texts)]
    replies = [BYTES.encode("Yes.") if text is None else [*BYTES.encode(text), STOP] for text in texts]
    found = generated(lambda prompts, tiles: replies[: len(prompts)], data, 99, frozenset([STOP]))
    ones = {"call": 1.0, "answer": 1.0, "ask": 1.0}
    if case == "a call instead of a question":
        by_class["precision"] |= {"ask": None}
    expected = {f"decision_{name}": ones | by_class.get(name, {}) for name in ("precision", "recall", "f1")}
    for name, values in expected.items():
        assert found[name] == pytest.approx({k: v for k, v in values.items() if v is not None}), name
    assert found["call_rates"] == pytest.approx(RATES | {"unparsable": 0.0, "unfinished": 0.0} | rates)
    assert found["decisions"] == {"call": 2, "answer": 1, "ask": 1} and found["turns"] == 4


def test_turns_to_generate_are_evenly_spread_and_fit(data, tmp_path):
    asked = []
    echo = lambda prompts, tiles: [asked.append(prompt) or [STOP] for prompt in prompts]
    generated(echo, data, 3, frozenset([STOP]))
    every = [turn.prompt for turn in turns_of(data)]
    assert asked == [every[0], every[4], every[7]] or asked == [every[0], every[3], every[7]]
    written(tmp_path / "runs.jsonl")
    short = open_dataset(data_config(tmp_path, sequence_length=len(every[0])), "train", seed=0)
    assert generated(echo, short, 99, frozenset([STOP]))["turns_too_long"] > 0
    short = open_dataset(data_config(tmp_path, sequence_length=32), "train", seed=0)
    with pytest.raises(InputError, match=r"--generate: none of the 8 held-out assistant turns begins"):
        generated(echo, short, 1, frozenset([STOP]))


def test_generation_needs_trajectories(tmp_path):
    checkpoint = bytes_model(tmp_path / "model")
    with pytest.raises(InputError, match="--generate writes turns of the assistant, and no source has kind"):
        evaluate(str(checkpoint), "pretrain_tiny", generate=1)


def test_both_evaluations_are_shown_by_class(data):
    replies = [turn.said for turn in turns_of(data)]
    free = generated(lambda prompts, tiles: replies, data, 99, frozenset([STOP]))
    forced = {f"eval_{name}": value for name, value in free.items() if isinstance(value, dict)}
    out = io.StringIO()
    show({"eval_loss": 1.5, "eval_tokens": 8, **forced, "generated": free}, Console(file=out, width=120))
    said = out.getvalue()
    assert "eval_loss 1.5" in said and said.count("answer │     4 │     1.000 │  1.000 │ 1.000") == 2
    assert "decisions by teacher forcing" in said and "decisions by generation" in said
    assert "unparsable 0.0%" in said and "8 turns, 0 turns too long" in said


@pytest.mark.slow
def test_an_overfit_model_decides_correctly_in_both_evaluations(tmp_path, mesh_of):
    written(tmp_path / "runs.jsonl", [Trajectory(run.steps) for run in RUNS])  # without tools they are short
    data = open_dataset(data_config(tmp_path, sequence_length=192), "train", seed=0)
    config = tiny.model_config(vocab_size=BYTES.vocab_size, num_hidden_layers=2, no_rope_layer_interval=2,
                               hidden_size=64, attention_chunk_size=192)  # fmt: skip
    objective = TrajectoryTuning()
    with mesh_of(data=1):
        optimizer = AdamW(learning_rate=1e-2, warmup_steps=5, schedule="constant", weight_decay=0.0)
        init, step = tiny.jitted(config, optimizer, objective)
        batch = tiny.placed({name: x[None] for name, x in rows_of(data).items()})
        state = init(0)
        for _ in range(120):  # after 80 steps the loss is still 0.08 to 0.11, depending on the processor's rounding
            state, metrics = step(state, batch)
        evaluated = jax.jit(functools.partial(eval_step, objective=objective))(
            state.model, batch, objective.first_context({})
        )
        forced = decisions.decision_metrics(jax.device_get(evaluated), data)
        write = lambda prompts, tiles: answers(state.model, BYTES, prompts, 32, Sampling(temperature=0.0), tiles=tiles)
        free = generated(write, data, 99, stop_ids(BYTES))
    assert metrics["loss"] < 0.1
    for found in (forced, free):
        assert found["decisions"] == ALL
        assert all(found[f"decision_{name}"] == ONES for name in ("precision", "recall", "f1"))
        assert RATES.items() <= found["call_rates"].items()

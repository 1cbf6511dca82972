"""Token kinds: compared with a twin that works token by token, and with hostile texts."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.trajectories import Step, Trajectory, find_actions, read_tools, read_trajectories
from data.trajectories.kinds import CONTEXT, TokenKind, decisions, token_kinds
from data.trajectories.trajectory import Outcome
from data.trajectories.weights import KindWeights, OutcomeWeights, loss_weights
from maverick_jax.errors import InputError
from maverick_jax.text.chat import DIALECTS, Kind, Message, Role, Tool, ToolCall, from_openai, pythonic, render
from tests.helpers.chats import LITERALS, TEXTS

CALL_KINDS = (TokenKind.CALL_SYNTAX, TokenKind.CALL_NAME, TokenKind.CALL_ARGUMENTS, TokenKind.FAILED_ACTION,
              TokenKind.RECOVERY)  # fmt: skip


def trajectory_with(field: str = "x") -> Trajectory:
    """A failure, its recovery, parallel calls of which one fails, a thought and a final answer; `field` is in every
    text."""
    user, assistant, tool = Role.USER, Role.ASSISTANT, Role.TOOL
    find, book = ToolCall("find", {"to": field}), ToolCall("book", {"seat": [field, 2], field: None})
    return Trajectory(
        [
            Step(Message(Role.SYSTEM, f"Policy. {field}")),
            Step(Message(user, f"Book. {field}")),
            Step(Message(assistant, "", [find])),
            Step(Message(tool, field)),
            Step(Message(assistant, f"I book. {field}", [book])),
            Step(Message(tool, f"Error: {field}"), error=True),
            Step(Message(assistant, "", [book], f"Once more. {field}")),
            Step(Message(tool, field)),
            Step(Message(assistant, f"Anything else? {field}")),
            Step(Message(user, field)),
            Step(Message(assistant, "", [find, book])),
            Step(Message(tool, field)),
            Step(Message(tool, f"Error: {field}"), error=True),
            Step(Message(assistant, f"Done. {field}", (), f"That is all. {field}")),
        ],
        [Tool("find", f"Finds. {field}"), Tool("book", f"Books. {field}")],
    )


def groups_of(trajectory, rendered, tokenizer, message):
    """The tokens of a message grouped by kind, as (kind, text)."""
    kinds = token_kinds(trajectory, rendered)
    found = []
    for i in np.flatnonzero(rendered.messages == message):
        kind = TokenKind(kinds[i]).name
        if not found or found[-1][0] != kind:
            found.append((kind, []))
        found[-1][1].append(int(rendered.ids[i]))
    return [(kind, tokenizer.decode(ids, controls=True)) for kind, ids in found]


def test_kinds_in_words(small_llama4):
    trajectory = trajectory_with()
    rendered = render(trajectory.conversation, small_llama4)
    kinds = token_kinds(trajectory, rendered)
    text = collections.defaultdict(str)
    for kind, span in ((TokenKind(kinds[s.begin]), s) for s in rendered.spans if s.begin < s.end):
        if kind not in (TokenKind.HEADER, TokenKind.TOOLS):
            text[kind.name] += f"{span.text}|"
    assert text["SYSTEM"] == "Policy. x|" and text["USER"] == "Book. x|x|"
    assert text["OBSERVATION"] == "x|x|x|" and text["OBSERVATION_ERROR"] == "Error: x|Error: x|"
    assert text["THOUGHT"].startswith("Once more. x|")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_token_of_a_message_has_the_expected_kind(dialect, small_llama4):
    """The tokens of a message, grouped by kind (a token may hold parts of two spans)."""
    trajectory = trajectory_with()
    rendered = render(trajectory.conversation, small_llama4, dialect)
    of = lambda message: collections.Counter(kind for kind, _ in groups_of(trajectory, rendered, small_llama4, message))
    assert set(of(4)) == {"HEADER", "FAILED_ACTION", "THOUGHT", "CONTROL"}
    assert set(of(6)) == {"HEADER", "RECOVERY", "THOUGHT", "CONTROL"}
    assert {"CALL_NAME", "CALL_ARGUMENTS", "FAILED_ACTION", "DECISION"} <= set(of(10))
    assert set(of(8)) == {"HEADER", "DECISION", "TEXT", "CONTROL"}
    assert set(of(13)) == {"HEADER", "CONTROL", "THOUGHT", "DECISION", "FINAL_ANSWER"}
    last = groups_of(trajectory, rendered, small_llama4, 13)
    assert [kind for kind, _ in last] == [
        "HEADER",
        "CONTROL",
        "THOUGHT",
        "CONTROL",
        "DECISION",
        "FINAL_ANSWER",
        "CONTROL",
    ]
    assert last[2][1] == "That is all. x" and last[4][1] + last[5][1] == "Done. x"


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=20)
@given(field=TEXTS, cut=st.integers(3, 14))
def test_kinds_equal_those_of_the_slow_twin(dialect, field, cut, small_llama4):
    trajectory = trajectory_with(field or "x")
    trajectory = dataclasses.replace(trajectory, steps=trajectory.steps[:cut])
    rendered = render(trajectory.conversation, small_llama4, dialect)
    assert token_kinds(trajectory, rendered).tolist() == slow_kinds(trajectory, rendered)


def slow_kinds(trajectory, rendered):
    """Kinds token by token from the fields of `Rendered`, with each rule applied separately."""
    owner = [next(s for s in rendered.spans if s.begin <= i < s.end) for i in range(len(rendered.ids))]
    actions = {(a.step, a.position): a for a in find_actions(trajectory)}
    assistant = [i for i, s in enumerate(trajectory.steps) if s.message.role is Role.ASSISTANT]
    kinds = []
    for i, span in enumerate(owner):
        step = trajectory.steps[span.message] if span.message >= 0 else None
        mine = [a for (m, _), a in actions.items() if m == span.message]
        action = actions.get((span.message, span.call))
        about = [action] if action else mine
        failed = bool(about) and all(a.failed for a in about)
        recovers = bool(about) and all(a.recovers for a in about)
        if is_decision(i, owner, rendered):
            all_failed, all_recover = (bool(mine) and all(getattr(a, f) for a in mine) for f in ("failed", "recovers"))
            name = "FAILED_ACTION" if all_failed else "RECOVERY" if all_recover else "DECISION"
        elif span.kind is Kind.CONTROL:
            name = "CONTROL" if rendered.written[i] else "HEADER"
        elif span.kind.name.startswith("CALL_"):
            name = "FAILED_ACTION" if failed else "RECOVERY" if recovers else span.kind.name
        elif span.kind is Kind.RESULT:
            name = "OBSERVATION_ERROR" if step.error else "OBSERVATION"
        elif span.kind is Kind.TEXT:
            name = "FINAL_ANSWER" if span.message == assistant[-1] else "TEXT"
        else:
            name = span.kind.name
        kinds.append(TokenKind[name])
    return kinds


def is_decision(i, owner, rendered):
    """Whether token i is the first written token of its message that is not part of a thought."""
    message = [j for j, span in enumerate(owner) if span.message == owner[i].message and rendered.written[j]]
    if i not in message:
        return False
    if owner[message[0]].text == "<|reasoning_thinking_start|>" and owner[message[0]].kind is Kind.CONTROL:
        ends = [j for j in message if owner[j].text == "<|reasoning_thinking_end|>" and owner[j].kind is Kind.CONTROL]
        message = [j for j in message if j > ends[0]]
    return i == message[0]


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_texts_like_control_tokens_change_no_kind_and_no_weight(dialect, literal, small_llama4):
    """Compared with harmless text, the control tokens are the same, and spans have the same kinds and weights."""
    shapes = []
    for field in ("x", literal):
        trajectory = trajectory_with(field)
        rendered = render(trajectory.conversation, small_llama4, dialect)
        kinds, weights = token_kinds(trajectory, rendered), loss_weights(trajectory, rendered)
        shape = []
        for span in rendered.spans:
            inner = range(span.begin + (span.begin in decisions(rendered).values()), span.end)
            found = {(int(kinds[i]), float(weights[i])) for i in inner}
            assert len(found) <= 1
            if span.kind is Kind.CONTROL or found:
                shape.append((span.kind, span.message, span.call, *found) if span.kind is not Kind.CONTROL else
                             (span.text, span.message, *found))  # fmt: skip
        shapes.append([s for s in shape if s[0] is not Kind.CALL_SYNTAX])
        controls = [i for i in rendered.ids.tolist() if i in small_llama4.controls.values()]
        shapes.append(controls)
    assert shapes[0] == shapes[2] and shapes[1] == shapes[3]


def test_decisions_are_the_first_tokens_after_thoughts(small_llama4):
    rendered = render(trajectory_with().conversation, small_llama4)
    found = decisions(rendered)
    assert sorted(found) == [2, 4, 6, 8, 10, 13]
    after_thought = {6, 13}
    starts = dict(zip(sorted(found), rendered.decisions.tolist(), strict=True))
    for message, at in found.items():
        assert rendered.written[at] and rendered.messages[at] == message
        assert (at > starts[message]) == (message in after_thought)


def test_a_rendering_of_another_trajectory_is_refused(small_llama4):
    trajectory = trajectory_with()
    rendered = render(trajectory.conversation, small_llama4)
    shorter = dataclasses.replace(trajectory, steps=trajectory.steps[:-1])
    with pytest.raises(InputError, match="has other messages"):
        token_kinds(shorter, rendered)


# ---- weights -------------------------------------------------------------------------------------------------------


def test_default_weights():
    table = KindWeights().table()
    assert table.dtype == np.float32 and len(table) == len(TokenKind)
    weights = {kind: float(table[kind]) for kind in TokenKind}
    assert {kind for kind, weight in weights.items() if weight == 0} == {
        *CONTEXT,
        TokenKind.FAILED_ACTION,
        TokenKind.LATENT,
    }
    assert weights[TokenKind.RECOVERY] == 1.5
    assert set(weights.values()) == {0.0, 1.0, 1.5}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_only_generated_tokens_have_weight_including_stop_tokens(dialect, small_llama4):
    trajectory = trajectory_with()
    rendered = render(trajectory.conversation, small_llama4, dialect)
    weights = loss_weights(trajectory, rendered)
    assert weights.dtype == np.float32 and weights.shape == rendered.ids.shape
    assert not weights[~rendered.written].any()
    failed = token_kinds(trajectory, rendered) == TokenKind.FAILED_ACTION
    assert (weights[rendered.written & ~failed] > 0).all() and not weights[failed].any()
    stops = np.append(np.flatnonzero(np.diff(rendered.messages)), len(weights) - 1)
    assert (weights[stops[rendered.written[stops]]] == 1).all()


def test_weights_of_one_give_ones(small_llama4):
    trajectory = trajectory_with()
    rendered = render(trajectory.conversation, small_llama4)
    ones = KindWeights(**{name: 1.0 for name in KindWeights.model_fields})
    assert np.array_equal(loss_weights(trajectory, rendered, ones), np.ones(len(rendered.ids), np.float32))


def test_weights_of_a_message_and_of_a_trajectory(small_llama4):
    trajectory = trajectory_with()
    steps = [dataclasses.replace(s, weight={1: 0.5, 4: 2.0}.get(i)) for i, s in enumerate(trajectory.steps)]
    weighted = dataclasses.replace(trajectory, steps=steps)
    rendered = render(trajectory.conversation, small_llama4)
    before, after = loss_weights(trajectory, rendered), loss_weights(weighted, rendered, None, 3.0)
    header = token_kinds(trajectory, rendered) == TokenKind.HEADER
    for i, own in ((1, 0.5), (4, 2.0)):
        mine = (rendered.messages == i) & ~header
        assert mine.any() and (after[mine] == 3 * own).all()
    others = ~np.isin(rendered.messages, (1, 4)) | header
    assert np.array_equal(after[others], 3 * before[others])
    for bad in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="trajectory_weight"):
            loss_weights(trajectory, rendered, None, bad)


def test_the_weight_of_the_system_message_does_not_apply_to_tools(small_llama4):
    trajectory = trajectory_with()
    steps = [dataclasses.replace(trajectory.steps[0], weight=2.0), *trajectory.steps[1:]]
    rendered = render(trajectory.conversation, small_llama4)
    weights = loss_weights(dataclasses.replace(trajectory, steps=steps), rendered)
    kinds = token_kinds(trajectory, rendered)
    assert set(weights[kinds == TokenKind.SYSTEM]) == {2.0} and set(weights[kinds == TokenKind.TOOLS]) == {0.0}


@pytest.mark.parametrize(
    ("outcome", "weight"),
    [
        (Outcome(), 3.0),
        (Outcome(reward=1.0), 1.0),
        (Outcome(reward=0.5), 2.0),
        (Outcome(reward=0.0, success=True), 1.0),
        (Outcome(reward=1.0, success=False), 2.0),
    ],
)
def test_weights_by_outcome(outcome, weight):
    assert OutcomeWeights(success=1.0, failure=2.0, unknown=3.0).of(outcome) == weight


# ---- real runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered_runs(real_data, any_llama4):
    tools = read_tools(real_data / "tau_airline_tools.json")
    runs = list(read_trajectories(real_data / "tau_airline_gpt4o.jsonl", tools=tools))
    return [(run, render(run.conversation, any_llama4)) for run in runs]


def test_real_runs_are_rebuilt_from_their_kinds(rendered_runs, any_llama4, any_ranks):
    """Every token has one kind; in each message the tokens that are no header and no control token are what was said
    or called, as the format writes it."""
    counts: collections.Counter[str] = collections.Counter()
    for trajectory, rendered in rendered_runs:
        kinds = token_kinds(trajectory, rendered)
        assert any_llama4.decode(rendered.ids.tolist(), controls=True) == rendered.text
        body = ~np.isin(kinds, (TokenKind.HEADER, TokenKind.CONTROL, TokenKind.TOOLS))
        for i, step in enumerate(trajectory.steps):
            ids = rendered.ids[(rendered.messages == i) & body].tolist()
            called = "".join(text.text for text in pythonic.write(step.message.calls)) if step.message.calls else ""
            said = any_llama4.decode(ids)
            if i == 0:  # one token holds the end of the policy and the empty line before the tools
                said = said.rstrip() + "\n"
            assert said == step.message.text + called
        counts.update(TokenKind(kind).name for kind in kinds.tolist())
    assert dict(counts) == COUNTS[any_ranks.name]


def test_real_runs_have_the_ids_of_their_messages(rendered_runs, any_llama4, real_data):
    tools = json.loads((real_data / "tau_airline_tools.json").read_text())
    lines = (real_data / "tau_airline_gpt4o.jsonl").read_text().splitlines()
    for number in range(0, 152, 19):
        raw = from_openai(json.loads(lines[number])["traj"], tools)
        assert np.array_equal(render(raw, any_llama4).ids, rendered_runs[number][1].ids)


def test_real_failures_are_the_calls_whose_results_are_errors(rendered_runs):
    for trajectory, rendered in rendered_runs:
        kinds = token_kinds(trajectory, rendered)
        for action in find_actions(trajectory):
            mine = kinds[(rendered.messages == action.step) & rendered.written]
            assert (TokenKind.FAILED_ACTION in mine) == action.failed
            assert (TokenKind.RECOVERY in mine) == action.recovers


COUNTS = {
    "tokenizer.model": {
        "HEADER": 35886, "SYSTEM": 540056, "TOOLS": 797088, "USER": 73311, "OBSERVATION": 394645,
        "OBSERVATION_ERROR": 2260, "THOUGHT": 9430, "DECISION": 2016, "TEXT": 184884, "FINAL_ANSWER": 21443,
        "CALL_SYNTAX": 7, "CALL_NAME": 9181, "CALL_ARGUMENTS": 41327, "FAILED_ACTION": 15786, "RECOVERY": 5808,
        "CONTROL": 2266,
    },
    "llama4_tokenizer.model": {
        "HEADER": 21722, "SYSTEM": 190760, "TOOLS": 356440, "USER": 28874, "OBSERVATION": 239744,
        "OBSERVATION_ERROR": 972, "THOUGHT": 3557, "DECISION": 2016, "TEXT": 75772, "FINAL_ANSWER": 8834,
        "CALL_SYNTAX": 38, "CALL_NAME": 2799, "CALL_ARGUMENTS": 20944, "FAILED_ACTION": 8963, "RECOVERY": 3271,
        "CONTROL": 2266,
    },
}  # fmt: skip
"""Tokens of each kind, by made-up ranks and by the public ones."""

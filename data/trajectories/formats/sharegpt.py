"""Reader of ShareGPT: `conversations` of `from` and `value`; calls are JSON in the value of a `function_call`."""

import itertools
from typing import Any

from data.trajectories import failures, tagged
from data.trajectories.builder import StepBuilder, at, tool_call
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.learned import take_weight
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import Message, Role, ToolCall, values

NEEDS = "`conversations`, a list of objects with `from` and `value`"
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "function_call": "call", "tool_call": "call", "observation": "result", "tool": "result",
    "function_response": "result", "tool_response": "result",
}  # fmt: skip
ROLES = {"system": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT, "result": Role.TOOL}


def matches(record: dict[str, Any]) -> bool:
    turns = record.get("conversations")
    return isinstance(turns, list) and (not turns or (isinstance(turns[0], dict) and "from" in turns[0]))


def read(record: Fields) -> Trajectory:
    """Read a record with `conversations` and optional `system`, `tools`, `reward`, `id`. Consecutive calls are parallel
    calls. They form one message with an assistant's text directly before them."""
    builder = StepBuilder()
    if system := record.take("system", str, default=""):
        builder.add("system", at("system", lambda: Message(Role.SYSTEM, system)))
    turns = ((_speaker(turn), turn) for turn in record.objects("conversations"))
    said: Fields | None = None  # a turn of the assistant, to which calls may belong
    for kind, group in itertools.groupby(turns, key=lambda turn: turn[0]):
        same = [turn for _, turn in group]
        if kind == "call":
            _add_calls(builder, same if said is None else [said, *same], 0 if said is None else 1)
            said = None
            continue
        if said is not None:
            _add(builder, said, Role.ASSISTANT)
        said = same.pop() if kind == "assistant" else None
        for turn in same:
            _add(builder, turn, ROLES[kind])
    if said is not None:
        _add(builder, said, Role.ASSISTANT)
    tools = openai.take_tools(record)
    outcome = Outcome(reward=record.take("reward", float, default=None))
    return Trajectory(builder.finish(), tools, outcome, Provenance(id=record.take_label("id")), record.rest())


def _speaker(turn: Fields) -> str:
    name = turn.take("from", str)
    if name not in SPEAKERS:
        near = did_you_mean(name, SPEAKERS) if len(name) < 80 else ""
        raise InputError(f"{turn.path('from')}: {name!r:.80}; expected one of {', '.join(SPEAKERS)}{near}")
    return SPEAKERS[name]


def _add(builder: StepBuilder, turn: Fields, role: Role) -> None:
    text, weight = turn.take("value", str), take_weight(turn)
    message = at(turn.path("value"), lambda: Message(role, text))
    if role is Role.TOOL or (role is Role.USER and builder.waiting() and tagged.are_results(text)):
        called = turn.take("name", str, default=None)
        openai.add_results(builder, turn, message, failures.generic, called=called, weight=weight)
    else:
        builder.add(turn.where, message, weight=weight, extra=turn.rest())


def _add_calls(builder: StepBuilder, turns: list[Fields], texts: int) -> None:
    """Add one message of several turns: `texts` of text, and then calls."""
    text = "".join(turn.take("value", str) for turn in turns[:texts])
    calls = [call for turn in turns[texts:] for call in _calls(turn)]
    extra: dict[str, Any] = {}
    weights: set[float | None] = set()
    for turn in turns:
        weights.add(take_weight(turn))
        for name, value in turn.rest().items():
            extra[name if len(turns) == 1 else f"{turn.where}.{name}"] = value
    if len(weights) > 1:
        raise InputError(
            f"{turns[0].where}: weight: calls in a row, and the text before them, are one message and need one weight"
        )
    message = at(turns[0].where, lambda: Message(Role.ASSISTANT, text, calls))
    builder.add(turns[0].where, message, weight=weights.pop(), extra=extra)


def _calls(turn: Fields) -> list[ToolCall]:
    value = turn.take("value", str, dict, list)
    if isinstance(value, str):
        value = at(turn.path("value"), lambda: values.read(value, "call"))
    found = value if isinstance(value, list) else [value]
    if not found:
        raise InputError(f"{turn.path('value')}: expected at least one call")
    return [_call(Fields(call, f"{turn.path('value')}[{i}]", turn.seen), turn, i) for i, call in enumerate(found)]


def _call(fields: Fields, turn: Fields, index: int) -> ToolCall:
    name = fields.take("name", str)
    arguments = fields.take("arguments", dict, str, default=None)
    if arguments is None:
        arguments = fields.take("parameters", dict, str, default={})
    call = at(fields.where, lambda: tool_call(name, arguments, fields.take_label("id")))
    for key, left in fields.rest().items():
        turn.add(f"value[{index}].{key}", left)
    return call

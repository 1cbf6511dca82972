"""Reader and writer of our own format, one JSON object per line: OpenAI chat messages, which other programs can read,
with the annotations of a trajectory.

A message may have `error`, `weight`, `reward` and `extra`; a record `outcome`, `provenance` and `extra`. Reading a
written trajectory gives an equal one.
"""

from collections.abc import Mapping
from typing import Any

from data.trajectories.builder import StepBuilder, at
from data.trajectories.fields import Fields
from data.trajectories.formats import openai
from data.trajectories.trajectory import Outcome, Provenance, Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, Tool, ToolCall, values

FORMAT, VERSION = "maverick-trajectory", 1
NEEDS = f'`format`: "{FORMAT}"'


def matches(record: dict[str, Any]) -> bool:
    return record.get("format") == FORMAT


def read(record: Fields) -> Trajectory:
    record.take("format", str)
    if (version := record.take("version", int)) != VERSION:
        raise InputError(f"version: {version}; expected {VERSION}")
    builder = StepBuilder()
    for fields in record.objects("messages"):
        reward = fields.take("reward", float, default=None)
        _merge_extra(fields)
        openai.add(builder, fields, _never, reward=reward)
    tools = openai.take_tools(record)
    outcome, provenance = _outcome(record.child("outcome")), _provenance(record.child("provenance"))
    _merge_extra(record)
    return Trajectory(builder.finish(), tools, outcome, provenance, record.rest())


def _never(text: str) -> bool:
    """The text rule of our format: only a flag makes a result an error."""
    return False


def _outcome(fields: Fields) -> Outcome:
    kinds = {"reward": float, "success": bool, "termination": str}
    found = {name: fields.take(name, kind, default=None) for name, kind in kinds.items()}
    _nothing_left(fields)
    return at(fields.where, lambda: Outcome(**found))


def _provenance(fields: Fields) -> Provenance:
    kinds = {"format": str, "file": str, "record": int, "line": int, "id": str, "task": str}
    found = {name: fields.take(name, kind, default=None) for name, kind in kinds.items() if name in fields.value}
    _nothing_left(fields)
    return Provenance(**found)


def _nothing_left(fields: Fields) -> None:
    """Raises InputError for unknown fields; `outcome` and `provenance` have no `extra`."""
    if left := fields.rest():
        raise InputError(f"{fields.path(next(iter(left)))}: unknown field")


def _merge_extra(fields: Fields) -> None:
    for name, value in fields.take("extra", dict, default={}).items():
        fields.add(name, value)


# ---- writing -------------------------------------------------------------------------------------------------------


def write(trajectory: Trajectory) -> str:
    """One line of JSON, without a line break. Raises InputError for images, which are token ids of one model."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "tools": [_tool(tool) for tool in trajectory.tools],
        "messages": [at(f"messages[{i}]", lambda s=step: _message(s)) for i, step in enumerate(trajectory.steps)],
        "outcome": _present(vars(trajectory.outcome)),
        "provenance": _present(vars(trajectory.provenance)),
        "extra": trajectory.extra,
    }
    return values.write({name: value for name, value in record.items() if value not in ([], {})})


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _message(step: Step) -> dict[str, Any]:
    message = step.message
    written: dict[str, Any] = {"role": "tool" if message.role is Role.TOOL else message.role.header}
    written["content"] = _content(message)
    if message.thought:
        written["reasoning_content"] = message.thought
    if message.calls:
        written["tool_calls"] = [_call(call) for call in message.calls]
    if message.call_id is not None:
        written["tool_call_id"] = message.call_id
    if step.error:
        written["error"] = True
    written |= _present({"weight": step.weight, "reward": step.reward})
    return written | ({"extra": step.extra} if step.extra else {})


def _content(message: Message) -> str | list[dict[str, str]] | None:
    if not message.parts:
        return None if message.calls else ""
    if not all(isinstance(part, str) for part in message.parts):
        raise InputError("content: an image; trajectories with images cannot be written")
    return message.text if len(message.parts) == 1 else [{"type": "text", "text": str(p)} for p in message.parts]


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return _present({"id": call.id}) | {"type": "function", "function": function}


def _present(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None and value != ""}

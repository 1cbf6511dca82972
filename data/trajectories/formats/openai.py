"""Reader of OpenAI chat messages with `tool_calls`, one conversation per record; other formats use parts of it."""

from typing import Any

from data.trajectories import failures
from data.trajectories.builder import StepBuilder, at
from data.trajectories.fields import Fields
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role, Tool, values
from maverick_jax.text.chat.openai import FIELDS, IMAGE_PARTS, ROLES, message_from_openai, tools_from_openai

NEEDS = "`messages`, a list of objects with `role`"
CALL_FIELDS, FUNCTION_FIELDS, PART_FIELDS = {"id", "type", "function"}, {"name", "arguments"}, {"type", "text"}
TOOL_FIELDS = {"name", "description", "parameters"}


def matches(record: dict[str, Any]) -> bool:
    messages = record.get("messages")
    return isinstance(messages, list) and (not messages or (isinstance(messages[0], dict) and "role" in messages[0]))


def read(record: Fields) -> Trajectory:
    """Read a record with `messages` and optional `tools`, `reward`, `success`, `id`, `task_id`."""
    builder = StepBuilder()
    for message in record.objects("messages"):
        add(builder, message, failures.generic)
    record.keep("parallel_tool_calls")
    outcome = Outcome(record.take("reward", float, default=None), record.take("success", bool, default=None))
    provenance = Provenance(id=record.take_label("id"), task=record.take_label("task_id"))
    return Trajectory(builder.finish(), take_tools(record), outcome, provenance, record.rest())


def take_tools(record: Fields, name: str = "tools") -> tuple[Tool, ...]:
    """Declared tools: a list or its JSON text, with or without `{"type": "function", "function": ...}` around each."""
    given = record.take(name, list, str, default=[])
    if isinstance(given, str):
        given = values.read(given, record.path(name)) if given.strip() else []
    if isinstance(given, list):
        given = [_tool(record, f"{name}[{i}]", tool) for i, tool in enumerate(given)]
    return at("" if name == "tools" else record.path(name), lambda: tools_from_openai(given))


def _tool(record: Fields, name: str, tool: Any) -> Any:
    bare = isinstance(tool, dict) and "function" not in tool and "name" in tool
    tool = {"type": "function", "function": tool} if bare else _known(record, name, tool, {"type", "function"})
    if isinstance(tool, dict) and "function" in tool:
        tool["function"] = _known(record, f"{name}.function", tool["function"], TOOL_FIELDS)
    return tool


def add(builder: StepBuilder, fields: Fields, rule: failures.TextRule, **notes: Any) -> None:
    """Add one message in OpenAI's format, with its loss weight and error flag. `rule` finds errors by their text."""
    role = _take_role(fields)
    message: dict[str, Any] = {"role": role}
    known = FIELDS[ROLES[role]]
    fields.skip(*known)
    message |= {name: fields.value[name] for name in known - {"role"} if name in fields.value}
    if ROLES[role] is Role.ASSISTANT:
        _take_reasoning(fields, message)
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_call(fields, f"tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if isinstance(parts := message.get("content"), list):
        message["content"] = [_part(fields, f"content[{i}]", part) for i, part in enumerate(parts)]
    if not message.get("content") and not calls and ROLES[role] is not Role.TOOL:
        message["content"] = ""  # an empty turn, for which the builder has a better message
    if ROLES[role] is Role.TOOL:
        message.setdefault("content", "")
        message["content"] = "" if message["content"] is None else message["content"]
    read = at(fields.where, lambda: message_from_openai(message))
    if read.role is Role.TOOL:
        notes["error"] = failures.is_error(fields, read.text, rule)
    notes.setdefault("weight", _weight(fields))
    builder.add(fields.where, read, called=message.get("name"), **notes, extra=fields.rest())


def _take_role(fields: Fields) -> str:
    role = fields.take("role", str)
    if role == "developer":  # a newer name of the system role
        fields.add("role", role)
        return "system"
    if role not in ROLES:
        at(fields.where, lambda: message_from_openai({"role": role}))
    return role


def _take_reasoning(fields: Fields, message: dict[str, Any]) -> None:
    if not message.get("reasoning_content") and isinstance(fields.value.get("reasoning"), str):
        message["reasoning_content"] = fields.take("reasoning", str)


def _weight(fields: Fields) -> float | None:
    """Loss weight of a message: from `weight` or `loss_weight`, or from `loss` (true or false)."""
    for name in ("weight", "loss_weight"):
        if name in fields.value:
            return fields.take(name, float, default=None)
    loss = fields.take("loss", bool, default=None) if "loss" in fields.value else None
    return None if loss is None else float(loss)


def _call(fields: Fields, name: str, call: Any) -> Any:
    """A call without its unknown fields, which go to the message's `extra` under their paths."""
    call = _known(fields, name, call, CALL_FIELDS)
    if isinstance(call, dict) and "function" in call:
        call["function"] = _known(fields, f"{name}.function", call["function"], FUNCTION_FIELDS)
    if isinstance(call, dict) and call.get("id") is None:
        call.pop("id", None)
    return call


def _part(fields: Fields, name: str, part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") in IMAGE_PARTS:
        raise InputError(f"{fields.where}.{name}: an image; trajectories with images are not supported")
    return _known(fields, name, part, PART_FIELDS)


def _known(fields: Fields, name: str, value: Any, known: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    inner = Fields(value, f"{fields.where}.{name}" if fields.where else name, fields.seen)
    inner.skip(*known)
    for key, left in inner.rest().items():
        fields.add(f"{name}.{key}", left)
    return {key: value[key] for key in known if key in value}

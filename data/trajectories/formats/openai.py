"""Reader of OpenAI chat messages with `tool_calls`, one conversation per record; other formats use parts of it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from data.trajectories import failures, tagged
from data.trajectories.builder import StepBuilder, at
from data.trajectories.fields import Fields
from data.trajectories.learned import take_weight
from data.trajectories.trajectory import Outcome, Provenance, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Image, Message, Role, Tool, values
from maverick_jax.text.chat.openai import FIELDS, IMAGE_PARTS, ROLES, message_from_openai, tools_from_openai

NEEDS = "`messages`, a list of objects with `role`"
CALL_FIELDS, FUNCTION_FIELDS, PART_FIELDS = {"id", "type", "function"}, {"name", "arguments"}, {"type", "text"}
TOOL_FIELDS = {"name", "description", "parameters"}


def matches(record: dict[str, Any]) -> bool:
    messages = record.get("messages")
    return isinstance(messages, list) and (not messages or (isinstance(messages[0], dict) and "role" in messages[0]))


def read(record: Fields, images: Iterable[Image] | None = None) -> Trajectory:
    """Read a record with `messages` and optional `tools` (or `functions`), `reward`, `success`, `id`, `task_id`.
    `images` take the places of image parts, in order; None: there must be none."""
    tools = take_tools(record)
    builder = StepBuilder(tools, None if images is None else iter(images))
    for message in record.objects("messages"):
        add(builder, message, failures.generic)
    record.keep("parallel_tool_calls", "tool_choice", "function_call")
    outcome = Outcome(record.take("reward", float, default=None), record.take("success", bool, default=None))
    provenance = Provenance(id=record.take_label("id"), task=record.take_label("task_id"))
    return Trajectory(builder.finish(), tools, outcome, provenance, record.rest())


def take_tools(record: Fields, name: str = "tools") -> tuple[Tool, ...]:
    """Declared tools: a list or its JSON text, with or without `{"type": "function", "function": ...}` around each.
    `functions` is the older name of `tools`."""
    given = _take_list(record, name)
    if name == "tools" and (functions := _take_list(record, "functions")):
        if given:
            raise InputError(f"{record.path('functions')}: `tools` declares tools too; expected one of the two")
        name, given = "functions", functions
    if isinstance(given, list):
        given = [_tool(record, f"{name}[{i}]", tool) for i, tool in enumerate(given)]
    return at("" if name == "tools" else record.path(name), lambda: tools_from_openai(given))


def _take_list(record: Fields, name: str) -> Any:
    given = record.take(name, list, str, default=[])
    if not isinstance(given, str):
        return given
    return values.read(given, record.path(name)) if given.strip() else []


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
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_call(builder, fields, f"tool_calls[{i}]", call) for i, call in enumerate(calls)]
    if ROLES[role] is Role.ASSISTANT:
        _take_reasoning(fields, message)
        calls = _take_function_call(builder, fields, message) or calls
    if isinstance(parts := message.get("content"), list):
        keep = builder.images is not None
        message["content"] = [_part(fields, f"content[{i}]", part, keep) for i, part in enumerate(parts)]
    if not message.get("content") and not calls and ROLES[role] is not Role.TOOL:
        message["content"] = ""  # an empty turn, for which the builder has a better message
    if ROLES[role] is Role.TOOL:
        message.setdefault("content", "")
        message["content"] = "" if message["content"] is None else message["content"]
    read = at(fields.where, lambda: message_from_openai(message, builder.images))
    given = take_weight(fields)
    notes["weight"] = notes.get("weight") if given is None else given
    is_result = read.role is Role.TOOL or (
        read.role is Role.USER and builder.waiting() and tagged.are_results(read.text)
    )
    if is_result:
        add_results(builder, fields, read, rule, called=message.get("name"), **notes)
    else:
        builder.add(fields.where, read, **notes, extra=fields.rest())


def add_results(builder: StepBuilder, fields: Fields, result: Message, rule: failures.TextRule, **notes: Any) -> None:
    """Add a message with a result, or with several between `<tool_response>` tags."""
    texts = at(fields.where, lambda: tagged.results(result.text, builder.waiting()))
    shown = [part for part in result.parts if not isinstance(part, str)]
    if len(texts) > 1:  # in the order of the calls
        if shown:
            raise InputError(f"{fields.where}: {len(texts)} results in one message with pictures; expected one")
        result, notes = dataclasses.replace(result, call_id=None), notes | {"called": None}
    for i, text in enumerate(texts):
        parts = result.parts if text == result.text else [*shown, text]
        read = dataclasses.replace(result, role=Role.TOOL, parts=parts)
        error = failures.is_error(fields, text, rule)
        builder.add(fields.where, read, error=error, extra={} if i else fields.rest(), **notes)


def _take_role(fields: Fields) -> str:
    role = fields.take("role", str)
    if role == "function":  # the older name of the tool role
        return "tool"
    if role == "developer":  # a newer name of the system role
        fields.add("role", role)
        return "system"
    if role not in ROLES:
        at(fields.where, lambda: message_from_openai({"role": role}))
    return role


def _take_reasoning(fields: Fields, message: dict[str, Any]) -> None:
    if not message.get("reasoning_content") and isinstance(fields.value.get("reasoning"), str):
        message["reasoning_content"] = fields.take("reasoning", str)


def _take_function_call(builder: StepBuilder, fields: Fields, message: dict[str, Any]) -> list[Any]:
    """The older field of an assistant message with one call; it becomes the `tool_calls` of `message`."""
    call = fields.take("function_call", dict, str, default=None)
    if not call:
        return []
    if message.get("tool_calls"):
        raise InputError(f"{fields.path('function_call')}: the message has `tool_calls` too; expected one of the two")
    if isinstance(call, str):
        call = at(fields.where, lambda: values.read(call, "function_call"))
    message["tool_calls"] = [{"type": "function", "function": _function(builder, fields, "function_call", call)}]
    return message["tool_calls"]


def _call(builder: StepBuilder, fields: Fields, name: str, call: Any) -> Any:
    """A call without its unknown fields, which go to the message's `extra` under their paths."""
    call = _known(fields, name, call, CALL_FIELDS)
    if isinstance(call, dict) and "function" in call:
        call["function"] = _function(builder, fields, f"{name}.function", call["function"])
    if isinstance(call, dict) and call.get("id") is None:
        call.pop("id", None)
    return call


def _function(builder: StepBuilder, fields: Fields, name: str, function: Any) -> Any:
    """The name and the arguments of a call. Arguments that are an object lose the nulls with which Arrow fills up the
    objects of a column: those that their tool does not declare."""
    function = _known(fields, name, function, FUNCTION_FIELDS)
    if not isinstance(function, dict):
        return function
    arguments = function["arguments"] = {} if function.get("arguments") is None else function["arguments"]
    tool = builder.tools.get(function.get("name") or "")
    if isinstance(arguments, dict) and tool is not None and not tool.parameters.get("additionalProperties"):
        declared = tool.parameters.get("properties") or {}
        padding = [key for key, value in arguments.items() if value is None and key not in declared]
        function["arguments"] = {key: value for key, value in arguments.items() if key not in padding}
        for key in padding:
            fields.count_left_out(f"{fields.where}.{name}.arguments.{key}")
    return function


def _part(fields: Fields, name: str, part: Any, images: bool) -> Any:
    if isinstance(part, dict) and part.get("type") in IMAGE_PARTS:
        if images:
            return part
        raise InputError(f"{fields.where}.{name}: an image; chats with pictures are read by `kind: pictures`")
    return _known(fields, name, part, PART_FIELDS)


def _known(fields: Fields, name: str, value: Any, known: set[str]) -> Any:
    if not isinstance(value, dict):
        return value
    inner = Fields(value, f"{fields.where}.{name}" if fields.where else name, fields.seen)
    inner.skip(*known)
    for key, left in inner.rest().items():
        fields.add(f"{name}.{key}", left)
    return {key: value[key] for key in known if key in value}

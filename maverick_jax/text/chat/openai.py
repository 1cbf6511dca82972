"""Read conversations in the format of OpenAI's chat API: `messages` with `tool_calls`, and `tools`."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import values
from maverick_jax.text.chat.conversation import (
    MAX_CALLS,
    MAX_MESSAGES,
    MAX_NAME,
    MAX_TOOLS,
    Conversation,
    Image,
    Message,
    Role,
    Tool,
    ToolCall,
)

ROLES = {"system": Role.SYSTEM, "developer": Role.SYSTEM, "user": Role.USER, "assistant": Role.ASSISTANT,
         "tool": Role.TOOL, "ipython": Role.TOOL}  # fmt: skip
FIELDS = {
    Role.SYSTEM: {"role", "content", "name"},
    Role.USER: {"role", "content", "name"},
    Role.ASSISTANT: {"role", "content", "name", "tool_calls", "reasoning_content", "reasoning"},
    Role.TOOL: {"role", "content", "tool_call_id", "name"},
}
"""A `name` of another role than tool tells participants apart; no dialect has a place for it."""
EMPTY = {
    "refusal": (None,),
    "audio": (None,),
    "function_call": (None,),
    "annotations": (None, []),
    "tool_calls": (None, []),
    "reasoning": (None, ""),
    "reasoning_content": (None, ""),
    "tool_call_id": (None,),
    "name": (None,),
}
"""Values of fields that say nothing, as clients write them when they send an answer back; accepted anywhere."""
IMAGE_PARTS = {"image": {"type", "image", "url", "path"}, "image_url": {"type", "image_url"}}


def from_openai(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | str | None = None,
    *,
    images: Sequence[Image] = (),
    ignored: Collection[str] = (),
) -> Conversation:
    """Build a conversation from `messages` and `tools` (a list, or its JSON text).

    Arguments of calls may be JSON text or objects. Content parts of type `image` or `image_url` are replaced by
    `images`, in order; the URLs in them are not opened. Role `developer` is `system`. Whether a tool is `strict` makes
    no difference: calls are checked when they are parsed. `ignored` names fields to skip; any other unknown field is an
    error. Raises InputError naming the message and the field.
    """
    _expect(messages, list, "messages")
    if len(messages) > MAX_MESSAGES:
        raise InputError(f"messages: {len(messages):,}; expected at most {MAX_MESSAGES:,}")
    reader = _MessageReader(iter(images), frozenset(ignored))
    read = [_at(f"message {i}", reader.message, message) for i, message in enumerate(messages)]
    _check_names(messages, read)
    if (left := sum(1 for _ in reader.images)) > 0:
        raise InputError(f"images: {left} more than the messages have image parts")
    return Conversation(read, reader.tools(tools))


def message_from_openai(message: Mapping[str, Any], images: Iterator[Image] | None = None) -> Message:
    """One message, read as in `from_openai`; its references to other messages are not checked. Its image parts take the
    next of `images`."""
    return _MessageReader(iter(()) if images is None else images, frozenset()).message(message)


def arguments_of(value: Any, where: str) -> dict[str, Any]:
    """The arguments of a call: an object or its JSON text, which may be empty or null if there are none. Raises
    InputError beginning with `where`."""
    if isinstance(value, str):
        value = {} if not value.strip() or value.strip() == "null" else values.read(value, where)
    return _expect(value, dict, where)


def tools_from_openai(tools: Sequence[Mapping[str, Any]] | str | None) -> tuple[Tool, ...]:
    """Declared tools (a list, or its JSON text), read as in `from_openai`."""
    return tuple(_MessageReader(iter(()), frozenset()).tools(tools))


class _MessageReader:
    """Reads messages and tools; `images` are consumed by image parts in order, `ignored` fields are skipped."""

    def __init__(self, images: Iterator[Image], ignored: frozenset[str]):
        self.images, self.ignored = images, ignored

    def message(self, message: Any) -> Message:
        message = _expect(message, dict, "message")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            near = did_you_mean(role, ROLES) if isinstance(role, str) and len(role) < MAX_NAME else ""
            raise InputError(f"role: {role!r:.80}; expected one of {', '.join(ROLES)}{near}")
        message = {key: value for key, value in message.items() if not _is_empty(key, value)}
        self._known(message, FIELDS[ROLES[role]])
        calls = self._calls(message.get("tool_calls") or [])
        if message.get("content") is None and not calls:
            raise InputError("content: is missing" if "content" not in message else "content: null without tool_calls")
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        content = self._content(message.get("content"))
        return Message(ROLES[role], content, calls, thought, message.get("tool_call_id"))

    def tools(self, tools: Any) -> list[Tool]:
        tools = values.read(tools, "tools") if isinstance(tools, str) else tools or []
        _expect(tools, list, "tools")
        if len(tools) > MAX_TOOLS:
            raise InputError(f"tools: {len(tools):,}; expected at most {MAX_TOOLS:,}")
        return [_at(f"tool {i}", self._tool, tool) for i, tool in enumerate(tools)]

    def _tool(self, tool: Any) -> Tool:
        function = self._function(tool)
        self._known(function, {"name", "description", "parameters", "strict"}, "function.")
        given = {key: function[key] for key in ("description", "parameters") if function.get(key) is not None}
        return Tool(function.get("name"), **given)  # pyright: ignore[reportArgumentType]

    def _calls(self, calls: Any) -> list[ToolCall]:
        _expect(calls, list, "tool_calls")
        if len(calls) > MAX_CALLS:
            raise InputError(f"tool_calls: {len(calls):,}; expected at most {MAX_CALLS}")
        return [_at(f"tool_calls[{i}]", self._call, call) for i, call in enumerate(calls)]

    def _call(self, call: Any) -> ToolCall:
        function = self._function(call, {"id"})
        self._known(function, {"name", "arguments"}, "function.")
        arguments = arguments_of(function.get("arguments"), "function.arguments")
        return ToolCall(function.get("name"), arguments, call.get("id"))  # pyright: ignore[reportArgumentType]

    def _function(self, outer: Any, fields: Collection[str] = ()) -> dict:
        _expect(outer, dict, "function")
        self._known(outer, {"type", "function", *fields})
        if outer.get("type", "function") != "function":
            raise InputError(f"type: {outer['type']!r:.80}; expected 'function'")
        return _expect(outer.get("function"), dict, "function")

    def _content(self, content: Any) -> str | list[str | Image]:
        if content is None or isinstance(content, str):
            return content or ""
        _expect(content, list, "content")
        return [_at(f"content[{i}]", self._part, part) for i, part in enumerate(content)]

    def _part(self, part: Any) -> str | Image:
        _expect(part, dict, "part")
        kind = part.get("type")
        if kind == "text":
            self._known(part, {"type", "text"})
            return _expect(part.get("text"), str, "text")
        if not isinstance(kind, str) or kind not in IMAGE_PARTS:
            raise InputError(f"type: {kind!r:.80}; expected text, image or image_url")
        self._known(part, IMAGE_PARTS[kind])
        image = next(self.images, None)
        if image is None:
            raise InputError("more image parts than `images`")
        return image

    def _known(self, found: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
        for key in found:
            if key not in known and key not in self.ignored:
                near = did_you_mean(key, known) if len(str(key)) < MAX_NAME else ""
                raise InputError(f"{prefix}{_name(key)}: unknown field; expected {', '.join(sorted(known))}{near}")


def _check_names(raw: Sequence[Mapping[str, Any]], messages: Sequence[Message]) -> None:
    """Check that a result with a tool name has the name of the tool that was called."""
    waiting: list[ToolCall] = []
    for i, (given, message) in enumerate(zip(raw, messages, strict=True)):
        if message.role is not Role.TOOL:
            waiting = list(message.calls)
        elif waiting:
            called = waiting.pop(0).name
            if given.get("name") not in (None, called):
                raise InputError(
                    f"message {i}: name: {given['name']!r:.80}; expected {called[:80]!r}, the tool that was called"
                )


def _is_empty(key: Any, value: Any) -> bool:
    return isinstance(key, str) and any(value == empty for empty in EMPTY.get(key, ()))


def _name(key: Any) -> str:
    """A field's name for a one-line message, quoted unless it is an identifier."""
    return key if isinstance(key, str) and key.isidentifier() and len(key) < MAX_NAME else f"{key!r:.80}"


def _at(where: str, read: Callable, value: Any) -> Any:
    """`read(value)`; errors are prefixed with `where`."""
    with _prefixed(where):
        return read(value)


@contextlib.contextmanager
def _prefixed(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        joint = "." if where.endswith("]") else ": "
        raise InputError(f"{where}{joint}{error}") from None


def _expect(value: Any, kind: type, where: str) -> Any:
    names = {list: "a list", dict: "an object", str: "text"}
    if kind is list and isinstance(value, tuple):
        return value
    if not isinstance(value, kind):
        raise InputError(f"{where}: expected {names[kind]}, got {type(value).__name__}")
    return value

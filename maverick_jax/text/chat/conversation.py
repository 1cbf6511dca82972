"""Conversations: messages with roles, images and tool calls. They are checked when created and immutable.

Token ids and the written format of a model are the concern of `render`, not of this module.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import values
from maverick_jax.text.chat.schemas import without_padding
from maverick_jax.text.tokenizers.base import require_unicode

MAX_MESSAGES, MAX_TOOLS, MAX_CALLS = 100_000, 1_024, 256
MAX_NAME, MAX_TEXT = 512, 1 << 24
"""Most characters of a tool's name and of one text."""
MAX_IMAGE_IDS, MAX_LATENTS = 1 << 20, 1 << 12


class Role(enum.IntEnum):
    """The author of a message. Roles are a closed set: text from data never becomes a role."""

    NONE = 0
    """Role of tokens outside all messages, such as the one that begins a text."""
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    """The result of a tool call; Llama 4 writes this role as `ipython`."""

    @property
    def header(self) -> str:
        """The role's name in the message header."""
        return "ipython" if self is Role.TOOL else self.name.lower()


@dataclasses.dataclass(frozen=True)
class Image:
    """An image in a message, as the ids of its tokens (from `maverick_jax.images.image_tokens`)."""

    ids: Sequence[int]

    def __post_init__(self):
        _set(self, "ids", tuple(int(i) for i in self.ids))
        if not 0 < len(self.ids) <= MAX_IMAGE_IDS:
            raise InputError(f"image: {len(self.ids):,} token ids; expected 1 to {MAX_IMAGE_IDS:,}")


@dataclasses.dataclass(frozen=True)
class Tool:
    """A function that the assistant may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of its arguments, without nulls that mean nothing (`schemas.without_padding`)."""

    def __post_init__(self):
        _check_name(self.name)
        _check_text(self.description, "description")
        _check_object(self.parameters, "parameters")
        checked = values.checked(dict(self.parameters), f"{self.name[:80]!r}: parameters")
        _set(self, "parameters", without_padding(checked))


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One call of a tool. Equality ignores `id`, since no dialect writes it."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Argument name -> JSON value."""
    id: str | None = dataclasses.field(default=None, compare=False)
    """Identifier by which a result refers to this call."""

    def __post_init__(self):
        _check_name(self.name)
        _check_object(self.arguments, f"{self.name[:80]!r}: arguments")
        _set(self, "arguments", values.checked(dict(self.arguments), f"{self.name[:80]!r}: arguments"))
        _check_id(self.id)


@dataclasses.dataclass(frozen=True)
class Message:
    """One message: texts and images in order, then (assistant only) tool calls."""

    role: Role
    parts: Sequence[str | Image] = ()
    """Texts and images, stored as a tuple; a single str is accepted."""
    calls: Sequence[ToolCall] = ()
    thought: str = ""
    """The assistant's reasoning before its answer."""
    call_id: str | None = None
    """Id of the call that a tool message answers; None means the first call without a result."""
    latents: int = 0
    """Number of latent thoughts before the `thought`, in training data. Messages of users and programs have none: they
    are not a part of the history."""

    def __post_init__(self):
        if not isinstance(self.role, Role) or self.role is Role.NONE:
            raise InputError(f"role: {self.role!r:.80}; expected one of SYSTEM, USER, ASSISTANT, TOOL")
        _set(self, "parts", _parts(self.parts))
        if len(self.calls) > MAX_CALLS:
            raise InputError(f"calls: {len(self.calls):,} in one message; expected at most {MAX_CALLS}")
        _set(self, "calls", tuple(self.calls))
        if not all(isinstance(call, ToolCall) for call in self.calls):
            raise InputError("calls: expected ToolCall objects")
        _check_text(self.thought, "thought")
        if type(self.latents) is not int or not 0 <= self.latents <= MAX_LATENTS:
            raise InputError(f"latents: {self.latents!r:.80}; expected 0 to {MAX_LATENTS:,}")
        _check_id(self.call_id)
        if self.role is not Role.ASSISTANT and (self.calls or self.thought or self.latents):
            raise InputError(f"{self.role.header}: only the assistant calls tools and has a `thought`")
        if self.role is not Role.TOOL and self.call_id is not None:
            raise InputError(f"{self.role.header}: only a tool message has a `call_id`")

    @property
    def text(self) -> str:
        """The message's texts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order, and the tools declared to the assistant."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()

    def __post_init__(self):
        for field, most in (("messages", MAX_MESSAGES), ("tools", MAX_TOOLS)):
            found = getattr(self, field)
            if len(found) > most:
                raise InputError(f"{field}: {len(found):,}; expected at most {most:,}")
            _set(self, field, tuple(found))
        if not self.messages:
            raise InputError("messages: empty; expected at least one")
        _check_tools(self.tools)
        _check_order(self.messages)


def _check_tools(tools: Sequence[Tool]) -> None:
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"tool {i}: name: {name[:80]!r} is also the name of tool {names.index(name)}")


def _check_order(messages: Sequence[Message]) -> None:
    """Only the first message may be a system message. Results answer the calls just before them in the order of the
    calls, since no dialect writes which call a result answers."""
    waiting: list[ToolCall] = []
    for i, message in enumerate(messages):
        if message.role is Role.SYSTEM and i > 0:
            raise InputError(f"message {i}: role: only the first message may be a system message")
        if message.role is not Role.TOOL:
            waiting = list(message.calls)
            continue
        if not waiting:
            raise InputError(f"message {i}: a tool result, but every call before it already has one")
        call = waiting.pop(0)
        if message.call_id is not None and call.id is not None and message.call_id != call.id:
            raise InputError(f"message {i}: tool_call_id: {message.call_id[:80]!r}; expected {call.id[:80]!r}, the "
                             "first call without a result (results come in the order of the calls)")  # fmt: skip


def _parts(parts: Any) -> tuple[str | Image, ...]:
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    for i, part in enumerate(parts):
        if isinstance(part, str):
            _check_text(part, f"content part {i}" if len(parts) > 1 else "content")
        elif not isinstance(part, Image):
            raise InputError(f"content part {i}: expected text or an Image, got {type(part).__name__}")
    return tuple(part for part in parts if part != "")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"name: expected the name of a tool, got {name!r:.80}")
    if len(name) > MAX_NAME:
        raise InputError(f"name: {len(name):,} characters; expected at most {MAX_NAME}")
    _check_text(name, "name")


def _check_id(value: Any) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > MAX_NAME):
        raise InputError(f"tool_call_id: expected a short text, got {value!r:.80}")


def _check_object(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected an object, got {type(value).__name__}")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise InputError(f"{where}: expected text, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise InputError(f"{where}: {len(text):,} characters; expected at most {MAX_TEXT:,}")
    try:
        require_unicode(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _set(instance: Any, field: str, value: Any) -> None:
    object.__setattr__(instance, field, value)

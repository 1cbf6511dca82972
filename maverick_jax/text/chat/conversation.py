"""A conversation: what was said, by whom, with which tools. Checked when it is made, and never changed.

Nothing here knows of tokens or of how a model's format writes things; `render` does that.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from maverick_jax.errors import InputError
from maverick_jax.text.chat import values
from maverick_jax.text.tokenizers.base import require_unicode

MAX_MESSAGES, MAX_TOOLS, MAX_CALLS = 100_000, 1_024, 256
MAX_NAME, MAX_TEXT = 512, 1 << 24
"""Characters of the name of a tool, and of one text."""
MAX_IMAGE_IDS = 1 << 20


class Role(enum.IntEnum):
    """Who speaks. The only roles there are: a role is never text from data."""

    NONE = 0
    """Of tokens that belong to no message, such as the one that begins a text."""
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3
    TOOL = 4
    """A tool that was called; Llama 4 writes it `ipython`."""

    @property
    def header(self) -> str:
        """Its written name."""
        return "ipython" if self is Role.TOOL else self.name.lower()


@dataclasses.dataclass(frozen=True)
class Image:
    """Where an image stands: the ids of its tokens, as `maverick_jax.images.image_tokens` makes them."""

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
    """JSON schema of its arguments."""

    def __post_init__(self):
        _check_name(self.name)
        _check_text(self.description, "description")
        _check_object(self.parameters, "parameters")
        _set(self, "parameters", values.checked(dict(self.parameters), f"{self.name[:80]!r}: parameters"))


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """One call. Equal calls may differ in `id`, which no format writes."""

    name: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values by the names of the arguments."""
    id: str | None = dataclasses.field(default=None, compare=False)
    """What its result refers to."""

    def __post_init__(self):
        _check_name(self.name)
        _check_object(self.arguments, f"{self.name[:80]!r}: arguments")
        _set(self, "arguments", values.checked(dict(self.arguments), f"{self.name[:80]!r}: arguments"))
        _check_id(self.id)


@dataclasses.dataclass(frozen=True)
class Message:
    """What one speaker said: texts and images in order, then, for the assistant, calls."""

    role: Role
    parts: Sequence[str | Image] = ()
    """Kept as a tuple; one text may be given as it is."""
    calls: Sequence[ToolCall] = ()
    thought: str = ""
    """What the assistant thought before it spoke."""
    call_id: str | None = None
    """The call that a tool's message answers; None: the first one that is not answered yet."""

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
        _check_id(self.call_id)
        if self.role is not Role.ASSISTANT and (self.calls or self.thought):
            raise InputError(f"{self.role.header}: only the assistant calls tools and thinks")
        if self.role is not Role.TOOL and self.call_id is not None:
            raise InputError(f"{self.role.header}: only a tool's message answers a call")

    @property
    def text(self) -> str:
        """All its texts."""
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages in order, and the tools that were declared to the assistant."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()

    def __post_init__(self):
        for field, most in (("messages", MAX_MESSAGES), ("tools", MAX_TOOLS)):
            found = getattr(self, field)
            if len(found) > most:
                raise InputError(f"{field}: {len(found):,}; expected at most {most:,}")
            _set(self, field, tuple(found))
        if not self.messages:
            raise InputError("messages: there is none")
        _check_tools(self.tools)
        _check_order(self.messages)


def _check_tools(tools: Sequence[Tool]) -> None:
    names = [tool.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"tool {i}: name: {name[:80]!r} is the name of tool {names.index(name)} too")


def _check_order(messages: Sequence[Message]) -> None:
    """A system message comes first or never; results answer the calls just before them, in their order (no format
    writes which call a result answers)."""
    waiting: list[ToolCall] = []
    for i, message in enumerate(messages):
        if message.role is Role.SYSTEM and i > 0:
            raise InputError(f"message {i}: role: a system message is the first or there is none")
        if message.role is not Role.TOOL:
            waiting = list(message.calls)
            continue
        if not waiting:
            raise InputError(f"message {i}: a tool's result, but no call before it waits for one")
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

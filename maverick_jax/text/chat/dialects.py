"""Tool dialects used with Llama 4 models. A dialect fixes where tools are declared, how calls and results are written,
which token ends them, and how calls are parsed. Messages without tools are the same in all dialects
(docs/reference/chat.md).

Each dialect has a twin in `templates/` for programs that render Jinja.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import json_calls, pythonic, values
from maverick_jax.text.chat.conversation import Conversation, Message, Role, Tool, ToolCall
from maverick_jax.text.chat.open_name import OpenName
from maverick_jax.text.chat.reply import (
    CALLING,
    THINKING,
    CallError,
    Piece,
    Reply,
    pieces_of,
    take_thought,
    take_wrapped,
    written,
)
from maverick_jax.text.chat.spans import Control, Kind, Latents, Segment, Text
from maverick_jax.text.tokenizers.base import Tokenizer

DEFAULT = "meta_pythonic"
LIST_OF_TOOLS = "Here is a list of functions in JSON format that you can invoke:"
HOW_PYTHONIC = (
    "To call functions, answer with a list of calls and nothing else, each argument by its name:\n"
    '[first_name(text="some text", number=1), second_name(flag=True)]'
)
HOW_JSON = (
    "To call a function, answer with one JSON object and nothing else; for several calls, one object after the other:\n"
)
META_OBJECT = '{"type": "function", "name": "its name", "parameters": {"argument": "value"}}'
SHORT_OBJECT = '{"name": "its name", "parameters": {"argument": "value"}}'
ENVIRONMENT = "Environment: ipython\n"
KINDS = {Role.SYSTEM: Kind.SYSTEM, Role.USER: Kind.USER, Role.ASSISTANT: Kind.TEXT, Role.TOOL: Kind.RESULT}
EOT, EOM = Control("<|eot|>"), Control("<|eom|>")


@dataclasses.dataclass
class MessageSegments:
    """One message as the segments between its header and the control token that ends it."""

    role: Role
    message: int
    content: list[Segment]
    stop: Control = EOT


class Dialect(abc.ABC):
    """One way of writing tool declarations, calls and results."""

    name: str
    notation: ModuleType
    """The module that writes and reads the text of calls."""
    call_stop: Control = EOT
    """The control token after calls and results."""

    def messages(self, conversation: Conversation) -> list[MessageSegments]:
        """The segments of each message, with the tools declared. Raises InputError if there is no place for them."""
        messages = [self._message(message, i) for i, message in enumerate(conversation.messages)]
        self._declare(messages, conversation.tools)
        return messages

    def begins_call(self, text: str) -> bool | None:
        """Whether an answer that begins with `text` is parsed as calls; None if that depends on what follows."""
        if self.notation.BEGINS_CALL.match(text):
            return True
        return None if self.notation.MAY_BEGIN_CALL.fullmatch(text) else False

    def open_name(self, written: Sequence[int], tokenizer: Tokenizer) -> OpenName | None:
        """The place of a tool's name that an answer, as far as it is `written`, ends with; None if it ends elsewhere,
        or is no call."""
        controls = set(tokenizer.controls.values())
        begin = next((i + 1 for i in reversed(range(len(written))) if written[i] in controls), 0)
        text = tokenizer.decode(list(written[begin:]))
        return None if self.begins_call(text) is False else self.notation.open_name(text)

    def parse_calls(self, reply: str | Sequence[int], tokenizer: Tokenizer) -> Reply | CallError:
        """Parse a model's reply, given as ids (up to the token that ends it) or as text, into thought, text and calls.

        A malformed call or a misplaced control token gives a CallError with the whole text: nothing is dropped and
        nothing is evaluated. Time and memory are bounded by the limits in `pythonic`, `json_calls` and `values`."""
        pieces = pieces_of(reply, tokenizer)
        try:
            thought, rest = take_thought(pieces)
            text, calls = self._parse(rest)
            return Reply(text, tuple(calls), thought)
        except InputError as error:
            return CallError(written(pieces), str(error))

    def _message(self, message: Message, index: int) -> MessageSegments:
        if message.role is Role.TOOL:
            content: list[Segment] = [
                Text(Kind.RESULT, self._result(part)) if isinstance(part, str) else part for part in message.parts
            ]
            return MessageSegments(message.role, index, content, self.call_stop)
        kind = Kind.THOUGHT if message.calls else KINDS[message.role]
        parts: list[Segment] = [Text(kind, part) if isinstance(part, str) else part for part in message.parts]
        if not message.calls:
            return MessageSegments(message.role, index, thought_segments(message.thought, message.latents) + parts)
        content = thought_segments(message.thought, message.latents) + self._with_calls(parts, message.calls)
        return MessageSegments(message.role, index, content, self.call_stop)

    @abc.abstractmethod
    def _with_calls(self, parts: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        """Content of a message with calls: its texts and images (`parts`), then the calls."""

    @abc.abstractmethod
    def _declare(self, messages: list[MessageSegments], tools: Sequence[Tool]) -> None:
        """Add the declaration of `tools` to `messages`, in place."""

    @abc.abstractmethod
    def _parse(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        """Text and calls. Raises InputError for a malformed call."""

    def _result(self, text: str) -> str:
        return text


class Meta(Dialect):
    """Tools are declared at the end of the system message. Calls stand alone, or, after other content, between
    `<|python_start|>` and `<|python_end|>`."""

    def __init__(self, name: str, how: str, call_stop: Control, notation: ModuleType, write: Callable):
        self.name, self.how, self.call_stop = name, how, call_stop
        self.notation, self._write_calls, self._read_calls = notation, write, notation.read

    def _with_calls(self, parts: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        begin, end = map(Control, CALLING)
        called = list(self._write_calls(calls))
        return [*parts, begin, *called, end] if parts else called

    def _declare(self, messages: list[MessageSegments], tools: Sequence[Tool]) -> None:
        if not tools:
            return
        if messages[0].role is not Role.SYSTEM:
            messages.insert(0, MessageSegments(Role.SYSTEM, -1, []))
        gap = "\n\n" if messages[0].content else ""
        messages[0].content.append(Text(Kind.TOOLS, f"{gap}{self.how}\n{LIST_OF_TOOLS}\n{_listed(tools)}"))

    def _parse(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        text, called, rest = take_wrapped(pieces)
        if called is not None:
            if written(rest).strip():
                raise InputError(f"more after the calls: {written(rest)[:40]!r}")
            return text, self._read_calls(called)
        return ("", self._read_calls(text)) if self.begins_call(text) else (text, [])


class HuggingFace(Dialect):
    """The dialect of the chat template in Hugging Face's Llama 4 folders: tools are declared in the first user message,
    text before calls stands between `<|python_start|>` and `<|python_end|>`, and results are quoted as JSON."""

    name = "hugging_face"
    notation = json_calls

    def _with_calls(self, parts: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        begin, end = map(Control, CALLING)
        return [begin, *parts, end, *json_calls.write(calls, {})]

    def _declare(self, messages: list[MessageSegments], tools: Sequence[Tool]) -> None:
        system = next((message for message in messages if message.role is Role.SYSTEM), None)
        if system:
            system.content = _trimmed(system.content)
        if not tools:
            return
        user = next((message for message in messages if message.role is Role.USER), None)
        if user is None:
            raise InputError("dialect hugging_face declares tools in the first user message, but there is none")
        if system:
            system.content.insert(0, Text(Kind.TOOLS, ENVIRONMENT))
        declaration = f"{HOW_JSON}{SHORT_OBJECT}\n{LIST_OF_TOOLS}\n{_listed(tools)}\n\n"
        user.content = [Text(Kind.TOOLS, declaration), *_trimmed(user.content)]

    def _parse(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        text, called, rest = take_wrapped(pieces)
        if called is None:
            return ("", json_calls.read(text)) if self.begins_call(text) else (text, [])
        if text.strip():
            raise InputError(f"text before {CALLING[0]}: {text[:40]!r}")
        after = written(rest) if all(isinstance(piece, str) for piece in rest) else None
        if after is None:
            raise InputError("unexpected control token after the calls")
        # A model may put the calls themselves between the two tokens.
        return (called, json_calls.read(after)) if after.strip() else ("", json_calls.read(called))

    def _result(self, text: str) -> str:
        return values.write(text)


def find_dialect(name: str) -> Dialect:
    """The dialect called `name`. Raises InputError with the nearest name."""
    if name not in DIALECTS:
        raise InputError(f"dialect {name!r:.80}; expected one of {', '.join(DIALECTS)}{did_you_mean(name, DIALECTS)}")
    return DIALECTS[name]


def dialect_of(name: str | None, tokenizer: Tokenizer) -> Dialect:
    """The dialect called `name`; None: that of the tokenizer's model, or else the default. Raises InputError with the
    nearest name."""
    return find_dialect(name or tokenizer.dialect or DEFAULT)


def thought_segments(thought: str, latents: int) -> list[Segment]:
    """The thought of an assistant's message: places of latents, then text, between its control tokens."""
    begin, end = map(Control, THINKING)
    places: list[Segment] = [Latents(latents)] if latents else []
    text: list[Segment] = [Text(Kind.THOUGHT, thought)] if thought else []
    return [begin, *places, *text, end] if places or text else []


def _listed(tools: Sequence[Tool]) -> str:
    fields = ({"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools)
    return "[\n" + ",\n".join(map(values.write, fields)) + "\n]"


def _trimmed(content: list[Segment]) -> list[Segment]:
    """`content` without leading and trailing white space if it is a single text, else unchanged."""
    match content:
        case [Text(kind, text)]:
            return [Text(kind, text.strip())] if text.strip() else []
    return content


def _json_meta(calls: Iterable[ToolCall]):
    return json_calls.write(list(calls), {"type": "function"})


_PYTHONIC = Meta(DEFAULT, HOW_PYTHONIC, EOT, pythonic, pythonic.write)
_JSON = Meta("meta_json", HOW_JSON + META_OBJECT, EOM, json_calls, _json_meta)
DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (_PYTHONIC, _JSON, HuggingFace())}

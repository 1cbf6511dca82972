"""The ways of writing tools that Llama 4 models are used with: where tools are declared, how calls and results look,
which token ends them, and how calls are read back. Plain messages are the same in all of them (docs/reference/chat.md).

Each has a twin in `templates/` for programs that render Jinja.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import json_calls, pythonic, values
from maverick_jax.text.chat.conversation import Conversation, Message, Role, Tool, ToolCall
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
from maverick_jax.text.chat.spans import Control, Kind, Segment, Text
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
class Turn:
    """One message as segments between its header and the control token that ends it."""

    role: Role
    message: int
    content: list[Segment]
    stop: Control = EOT


class Dialect(abc.ABC):
    """One way of writing tools."""

    name: str
    call_stop: Control = EOT
    """What ends calls and results."""

    def turns(self, conversation: Conversation) -> list[Turn]:
        """The whole conversation, tools declared."""
        turns = [self._turn(message, i) for i, message in enumerate(conversation.messages)]
        self._finish(turns, conversation.tools)
        return turns

    def parse_calls(self, reply: str | Sequence[int], tokenizer: Tokenizer) -> Reply | CallError:
        """Thought, text and calls of what a model wrote, given as ids (up to the token that ends it) or as text.

        What is meant as a call and is none, or has control tokens where none belong, is a CallError with the whole
        text: nothing is dropped and nothing evaluated. Time and memory are bounded, by the limits of `pythonic`,
        `json_calls` and `values`."""
        pieces = pieces_of(reply, tokenizer)
        try:
            thought, rest = take_thought(pieces)
            text, calls = self._read(rest)
            return Reply(text, tuple(calls), thought)
        except InputError as error:
            return CallError(written(pieces), str(error))

    def _turn(self, message: Message, index: int) -> Turn:
        if message.role is Role.TOOL:
            content: list[Segment] = [
                Text(Kind.RESULT, self._result(part)) if isinstance(part, str) else part for part in message.parts
            ]
            return Turn(message.role, index, content, self.call_stop)
        kind = Kind.THOUGHT if message.calls else KINDS[message.role]
        said: list[Segment] = [Text(kind, part) if isinstance(part, str) else part for part in message.parts]
        if not message.calls:
            return Turn(message.role, index, _thought(message) + said)
        return Turn(message.role, index, _thought(message) + self._calling(said, message.calls), self.call_stop)

    @abc.abstractmethod
    def _calling(self, said: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        """Content of a message with calls; `said` comes before them."""

    @abc.abstractmethod
    def _finish(self, turns: list[Turn], tools: Sequence[Tool]) -> None:
        """Declare the tools in `turns`, in place."""

    @abc.abstractmethod
    def _read(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        """Text and calls. Raises InputError for what is meant as a call and is none."""

    def _result(self, text: str) -> str:
        return text


class Meta(Dialect):
    """Tools are declared at the end of the system message. Calls stand bare, or between `<|python_start|>` and
    `<|python_end|>` where something is said before them."""

    def __init__(self, name: str, how: str, call_stop: Control, write: Callable, read: Callable, begins_call: Callable):
        self.name, self.how, self.call_stop = name, how, call_stop
        self._write_calls, self._read_calls, self._begins_call = write, read, begins_call

    def _calling(self, said: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        begin, end = map(Control, CALLING)
        called = list(self._write_calls(calls))
        return [*said, begin, *called, end] if said else called

    def _finish(self, turns: list[Turn], tools: Sequence[Tool]) -> None:
        if not tools:
            return
        if turns[0].role is not Role.SYSTEM:
            turns.insert(0, Turn(Role.SYSTEM, -1, []))
        gap = "\n\n" if turns[0].content else ""
        turns[0].content.append(Text(Kind.TOOLS, f"{gap}{self.how}\n{LIST_OF_TOOLS}\n{_listed(tools)}"))

    def _read(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        text, called, rest = take_wrapped(pieces)
        if called is not None:
            if written(rest).strip():
                raise InputError(f"more after the calls: {written(rest)[:40]!r}")
            return text, self._read_calls(called)
        return ("", self._read_calls(text)) if self._begins_call(text) else (text, [])


class HuggingFace(Dialect):
    """As the template in Hugging Face's folders does it: tools are declared in the first user message, what is said
    before calls stands between `<|python_start|>` and `<|python_end|>`, and results are quoted as JSON."""

    name = "hugging_face"

    def _calling(self, said: list[Segment], calls: Sequence[ToolCall]) -> list[Segment]:
        begin, end = map(Control, CALLING)
        return [begin, *said, end, *json_calls.write(calls, {})]

    def _finish(self, turns: list[Turn], tools: Sequence[Tool]) -> None:
        system = next((turn for turn in turns if turn.role is Role.SYSTEM), None)
        if system:
            system.content = _trimmed(system.content)
        if not tools:
            return
        user = next((turn for turn in turns if turn.role is Role.USER), None)
        if user is None:
            raise InputError("dialect hugging_face declares tools in the first user message, and there is none")
        if system:
            system.content.insert(0, Text(Kind.TOOLS, ENVIRONMENT))
        declaration = f"{HOW_JSON}{SHORT_OBJECT}\n{LIST_OF_TOOLS}\n{_listed(tools)}\n\n"
        user.content = [Text(Kind.TOOLS, declaration), *_trimmed(user.content)]

    def _read(self, pieces: Sequence[Piece]) -> tuple[str, list[ToolCall]]:
        text, called, rest = take_wrapped(pieces)
        if called is None:
            return ("", json_calls.read(text)) if json_calls.BEGINS_CALL.match(text) else (text, [])
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


def _thought(message: Message) -> list[Segment]:
    begin, end = map(Control, THINKING)
    return [begin, Text(Kind.THOUGHT, message.thought), end] if message.thought else []


def _listed(tools: Sequence[Tool]) -> str:
    fields = ({"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools)
    return "[\n" + ",\n".join(map(values.write, fields)) + "\n]"


def _trimmed(content: list[Segment]) -> list[Segment]:
    """Without white space around it, where the content is one text."""
    match content:
        case [Text(kind, text)]:
            return [Text(kind, text.strip())] if text.strip() else []
    return content


def _json_meta(calls: Iterable[ToolCall]):
    return json_calls.write(list(calls), {"type": "function"})


_PYTHONIC = Meta(DEFAULT, HOW_PYTHONIC, EOT, pythonic.write, pythonic.read, pythonic.BEGINS_CALL.match)
_JSON = Meta("meta_json", HOW_JSON + META_OBJECT, EOM, _json_meta, json_calls.read, json_calls.BEGINS_CALL.match)
DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (_PYTHONIC, _JSON, HuggingFace())}

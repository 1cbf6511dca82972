"""Reads a reply while it is written: thoughts, text, and calls that are sent only when they are complete.

Tokens are taken one at a time, so it makes no difference how they were grouped on their way."""

import dataclasses
import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from maverick_jax.inference.decoding import TextDecoder
from maverick_jax.inference.engine.requests import Finish
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Dialect, ToolCall
from maverick_jax.text.chat.reply import STOPS, THINKING, pieces_of, written

MAX_OPENING = 1_024
"""Characters after which a reply that may still begin as calls is held to its end without another look."""


class _Stage(enum.Enum):
    START = enum.auto()
    THOUGHT = enum.auto()
    OPENING = enum.auto()
    """Text that may turn out to be the beginning of calls."""
    TEXT = enum.auto()
    HELD = enum.auto()
    """What may be calls, parsed at the end."""


@dataclasses.dataclass(frozen=True)
class ReplyPiece:
    """What is new in a reply."""

    text: str = ""
    thought: str = ""
    tokens: tuple[int, ...] = ()
    """Places, among all tokens of the reply, of those that became text."""


@dataclasses.dataclass
class WholeReply:
    """A reply that has ended. `text` is the content of its message."""

    text: str = ""
    thought: str = ""
    calls: Sequence[ToolCall] = ()
    error: str | None = None
    """Why what looked like calls could not be parsed. It is in `text` then,
    with control tokens in their written form."""
    thought_tokens: int = 0
    stop_text: bool = False
    """Whether a stop text ended it."""
    held: dict[str, Any] | None = None
    """Why the gate held its calls back; `text` then ends with a question or a refusal."""


class TextCutter:
    """Ends a text before the first of `stops`, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""
        self._most = max(map(len, self._stops), default=1) - 1
        self.found = False

    def add(self, text: str) -> str:
        """The part of the text so far that is new and stays."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = min(self._most, len(text))
        while keep and not any(stop.startswith(text[-keep:]) for stop in self._stops):
            keep -= 1
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class TextReader:
    """Reads a text that is no message: control tokens are left out, as `Tokenizer.decode` does."""

    def __init__(self, tokenizer: Tokenizer, stop_texts: Sequence[str] = ()):
        self._controls = frozenset(tokenizer.controls.values())
        self._decoder, self._cutter = TextDecoder(tokenizer), TextCutter(stop_texts)
        self._texts: list[str] = []
        self._count = 0

    def add(self, tokens: Sequence[int]) -> ReplyPiece:
        """Reads the next tokens; all of them, those that end the text included, are in the piece's `tokens`."""
        read = [self._decoder.end() if token in self._controls else self._decoder.add(token) for token in tokens]
        text = "".join(self._cutter.add(piece) for piece in read if piece)
        self._texts.append(text)
        places = tuple(range(self._count, self._count + len(tokens)))
        self._count += len(tokens)
        return ReplyPiece(text, tokens=places)

    def finish(self, finish: Finish) -> tuple[ReplyPiece, WholeReply]:
        """The rest, and the whole."""
        text = self._cutter.add(self._decoder.end())
        text += self._cutter.finish()
        return ReplyPiece(text), WholeReply("".join([*self._texts, text]), stop_text=self._cutter.found)


class ReplyReader:
    """Reads one reply. Without `dialect`, no calls are expected: all is text.

    A reply with calls that cannot be parsed, or that was cut, keeps all of it as text: nothing is dropped."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        dialect: Dialect | None,
        stop_ids: Collection[int] = (),
        stop_texts: Sequence[str] = (),
    ):
        self._tokenizer, self._dialect = tokenizer, dialect
        self._names = {token: name for name, token in tokenizer.controls.items()}
        self._ends = {tokenizer.controls[name] for name in STOPS if name in tokenizer.controls} | set(stop_ids)
        self._decoder, self._cutter = TextDecoder(tokenizer), TextCutter(stop_texts)
        self._stage, self._over = _Stage.START, False
        self._ids: list[int] = []
        self._begin = 0
        """Place where the thought, if there is one, has ended."""
        self._opening = ""
        self._undecided: list[int] = []
        """Places of tokens that are text unless they turn out to be calls."""
        self._uncut = 0
        """Characters of text before stop texts cut it."""
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._stray: str | None = None
        self._thought_tokens = 0

    def add(self, tokens: Iterable[int]) -> ReplyPiece:
        """Reads the next tokens."""
        text: list[str] = []
        thought: list[str] = []
        places: list[int] = []
        for token in tokens:
            piece = self._one(int(token))
            text.append(piece.text)
            thought.append(piece.thought)
            places.extend(piece.tokens)
        return ReplyPiece("".join(text), "".join(thought), tuple(places))

    def finish(self, finish: Finish) -> tuple[ReplyPiece, WholeReply]:
        """The rest, and the whole: the pieces together are its text and its thought."""
        calls: Sequence[ToolCall] = ()
        error, text, thought = self._stray, "", ""
        places: tuple[int, ...] = ()
        if self._stage is _Stage.THOUGHT:
            thought = self._thought(self._decoder.end())
        elif self._stage in (_Stage.OPENING, _Stage.HELD):
            text, calls, problem = self._parsed(finish)
            error = error or problem
            places = () if calls else tuple(self._undecided)
        else:
            text = self._decoder.end()
        shown = self._shown(text) + self._kept(self._cutter.finish())
        whole = WholeReply("".join(self._texts), "".join(self._thoughts), calls, error, self._thought_tokens)
        whole.stop_text = self._cutter.found
        return ReplyPiece(shown, thought, places), whole

    def _one(self, token: int) -> ReplyPiece:
        if self._over or self._cutter.found:
            return ReplyPiece()
        if token in self._ends:
            self._over = True
            return ReplyPiece()
        place = len(self._ids)
        self._ids.append(token)
        if self._stage is _Stage.START:
            self._stage = _Stage.OPENING if self._dialect else _Stage.TEXT
            if self._names.get(token) == THINKING[0]:
                self._stage, self._thought_tokens = _Stage.THOUGHT, 1
                return ReplyPiece()
        if self._stage is _Stage.THOUGHT:
            return self._in_thought(token)
        if self._stage is _Stage.OPENING:
            return self._in_opening(token, place)
        if self._stage is _Stage.TEXT:
            return self._in_text(token, place)
        self._undecided.append(place)
        return ReplyPiece()

    def _in_thought(self, token: int) -> ReplyPiece:
        self._thought_tokens += 1
        name = self._names.get(token)
        if name is None:
            return ReplyPiece(thought=self._thought(self._decoder.add(token)))
        rest = self._decoder.end()
        if name == THINKING[1]:
            self._stage = _Stage.OPENING if self._dialect else _Stage.TEXT
            self._begin = len(self._ids)
            return ReplyPiece(thought=self._thought(rest))
        self._stray = self._stray or f"unexpected control token {name}"
        return ReplyPiece(thought=self._thought(rest + name))

    def _in_opening(self, token: int, place: int) -> ReplyPiece:
        assert self._dialect is not None
        self._undecided.append(place)
        if token in self._names:
            self._stage = _Stage.HELD
            return ReplyPiece()
        self._opening += self._decoder.add(token)
        begins = self._dialect.begins_call(self._opening)
        if begins is False:
            self._stage = _Stage.TEXT
            places, self._undecided = tuple(self._undecided), []
            return ReplyPiece(self._shown(self._opening), tokens=places)
        if begins or len(self._opening) > MAX_OPENING:
            self._stage = _Stage.HELD
        return ReplyPiece()

    def _in_text(self, token: int, place: int) -> ReplyPiece:
        name = self._names.get(token)
        if name is None:
            return ReplyPiece(self._shown(self._decoder.add(token)), tokens=(place,))
        rest = self._decoder.end()
        if self._dialect is None:
            self._stray = self._stray or f"unexpected control token {name}"
            return ReplyPiece(self._shown(rest + name), tokens=(place,))
        self._stage = _Stage.HELD
        self._undecided.append(place)
        return ReplyPiece(self._shown(rest))

    def _parsed(self, finish: Finish) -> tuple[str, Sequence[ToolCall], str | None]:
        """The held part as text that was not shown yet, or as calls; and the problem, if there is one."""
        assert self._dialect is not None
        body = self._ids[self._begin :]
        if finish is Finish.STOP and self._stray is None:
            found = self._dialect.parse_calls(self._ids, self._tokenizer)
            if not isinstance(found, CallError):
                return found.text[self._uncut :], found.calls, None
            return written(pieces_of(body, self._tokenizer))[self._uncut :], (), found.reason
        held = self._stage is _Stage.HELD and finish is not Finish.STOP
        text = written(pieces_of(body, self._tokenizer))
        return text[self._uncut :], (), "cut before the end of its calls" if held else None

    def _shown(self, text: str) -> str:
        self._uncut += len(text)
        return self._kept(self._cutter.add(text)) if text else ""

    def _kept(self, text: str) -> str:
        if text:
            self._texts.append(text)
        return text

    def _thought(self, text: str) -> str:
        self._thoughts.append(text)
        return text

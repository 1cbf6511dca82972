"""What a model wrote after the assistant's header, taken apart: thought, text and calls, or why that cannot be done."""

import dataclasses
from collections.abc import Callable, Sequence

from maverick_jax.errors import InputError
from maverick_jax.text.chat.conversation import Message, Role, ToolCall
from maverick_jax.text.chat.spans import Control
from maverick_jax.text.tokenizers.base import Tokenizer

STOPS = ("<|eot|>", "<|eom|>", "<|end_of_text|>")
THINKING = ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
CALLING = ("<|python_start|>", "<|python_end|>")

Piece = str | Control
ReadCalls = Callable[[str], list[ToolCall]]
"""Raises InputError for what is no list of calls."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """An assistant's message as the model wrote it."""

    text: str = ""
    calls: Sequence[ToolCall] = ()
    thought: str = ""

    def message(self) -> Message:
        return Message(Role.ASSISTANT, self.text, self.calls, self.thought)


@dataclasses.dataclass(frozen=True)
class CallError:
    """A reply with something in it that was meant as a call, and is none."""

    text: str
    """The whole reply, control tokens by their written form."""
    reason: str

    def __str__(self) -> str:
        return f"not understood: {self.reason}"


def pieces_of(body: str | Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    """Texts and control tokens of a reply, up to the token that ends it. Ids tell control tokens from text that looks
    like them; a str is all text."""
    if isinstance(body, str):
        return [body] if body else []
    written = {i: name for name, i in tokenizer.controls.items()}
    pieces: list[Piece] = []
    begin = 0
    ids = [int(i) for i in body]
    for at, token in enumerate([*ids, None]):
        if token is not None and token not in written:
            continue
        if at > begin:
            pieces.append(tokenizer.decode(ids[begin:at]))
        if token is None or written[token] in STOPS:
            break
        pieces.append(Control(written[token]))
        begin = at + 1
    return pieces


def written(pieces: Sequence[Piece]) -> str:
    return "".join(piece if isinstance(piece, str) else piece.name for piece in pieces)


def take_thought(pieces: Sequence[Piece]) -> tuple[str, list[Piece]]:
    """The thought that a reply begins with, and the rest. A thought that never ends is all there is."""
    begin, end = map(Control, THINKING)
    if not pieces or pieces[0] != begin:
        return "", list(pieces)
    last = pieces.index(end) if end in pieces else len(pieces)
    return only_text(pieces[1:last]), list(pieces[last + 1 :])


def take_wrapped(pieces: Sequence[Piece]) -> tuple[str, str | None, list[Piece]]:
    """Text before `<|python_start|>`, text between it and `<|python_end|>` (None: there is none), and the rest."""
    begin, end = map(Control, CALLING)
    if begin not in pieces:
        return only_text(pieces), None, []
    first = pieces.index(begin)
    last = pieces.index(end) if end in pieces else len(pieces)
    return only_text(pieces[:first]), only_text(pieces[first + 1 : last]), list(pieces[last + 1 :])


def only_text(pieces: Sequence[Piece]) -> str:
    """Raises InputError where a control token is among the pieces."""
    for piece in pieces:
        if not isinstance(piece, str):
            raise InputError(f"unexpected control token {piece.name}")
    return written(pieces)

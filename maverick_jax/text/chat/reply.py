"""Parse a model's reply (the tokens after the assistant's header) into thought, text and calls, or an error."""

import dataclasses
from collections.abc import Callable, Sequence

from maverick_jax.errors import InputError
from maverick_jax.text.chat.conversation import Message, Role, ToolCall
from maverick_jax.text.chat.spans import Control
from maverick_jax.text.tokenizers.base import Tokenizer

STOPS = ("<|eot|>", "<|eom|>", "<|end_of_text|>")
THINKING = ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>")
LATENT = "<|reasoning_reserved_special_token_0|>"
"""Holds the place of a latent thought: the model reads its own last hidden state there."""
CALLING = ("<|python_start|>", "<|python_end|>")

Piece = str | Control
ReadCalls = Callable[[str], list[ToolCall]]
"""Parses the text of calls; raises InputError for malformed calls."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A parsed assistant message."""

    text: str = ""
    calls: Sequence[ToolCall] = ()
    thought: str = ""

    def message(self) -> Message:
        return Message(Role.ASSISTANT, self.text, self.calls, self.thought)


@dataclasses.dataclass(frozen=True)
class CallError:
    """A reply with a malformed call or a misplaced control token."""

    text: str
    """The whole reply, with control tokens in their written form."""
    reason: str

    def __str__(self) -> str:
        return f"malformed reply: {self.reason}"


def pieces_of(body: str | Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    """Texts and control tokens of a reply, up to the token that ends it. Only ids can be control tokens; a str is
    ordinary text throughout."""
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
    """The pieces as one text, with control tokens in their written form."""
    return "".join(piece if isinstance(piece, str) else piece.name for piece in pieces)


def take_thought(pieces: Sequence[Piece]) -> tuple[str, list[Piece]]:
    """The thought at the beginning of a reply, and the rest. A thought without an end token takes the whole reply."""
    begin, end = map(Control, THINKING)
    if not pieces or pieces[0] != begin:
        return "", list(pieces)
    last = pieces.index(end) if end in pieces else len(pieces)
    return only_text(pieces[1:last]), list(pieces[last + 1 :])


def take_wrapped(pieces: Sequence[Piece]) -> tuple[str, str | None, list[Piece]]:
    """Text before `<|python_start|>`, text between it and `<|python_end|>` (None without the token), and the rest."""
    begin, end = map(Control, CALLING)
    if begin not in pieces:
        return only_text(pieces), None, []
    first = pieces.index(begin)
    last = pieces.index(end) if end in pieces else len(pieces)
    return only_text(pieces[:first]), only_text(pieces[first + 1 : last]), list(pieces[last + 1 :])


def only_text(pieces: Sequence[Piece]) -> str:
    """The pieces as one text. Raises InputError if one of them is a control token."""
    for piece in pieces:
        if not isinstance(piece, str):
            raise InputError(f"unexpected control token {piece.name}")
    return written(pieces)

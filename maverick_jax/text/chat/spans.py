"""Data types of rendering: segments before tokenization; spans and per-token arrays after it."""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from maverick_jax.reasoning import Mark
from maverick_jax.text.chat.conversation import Image, Role


class Kind(enum.IntEnum):
    """The part of a conversation that a token belongs to. The numbers are stored in data: never change them, and give
    a new kind a new number below 256."""

    CONTROL = 0
    """A control token, such as one that begins or ends a message, header, call or thought."""
    HEADER = 1
    """The name of a role and the empty line after it."""
    SYSTEM = 2
    TOOLS = 3
    """The declaration of the tools, with the instruction how to call them."""
    USER = 4
    TEXT = 5
    """The assistant's text in a message without calls."""
    THOUGHT = 6
    """The assistant's reasoning, and its text before calls."""
    CALL_SYNTAX = 7
    """Brackets, quotes and fixed words of a call."""
    CALL_NAME = 8
    CALL_ARGUMENTS = 9
    RESULT = 10
    """The result of a tool call."""
    IMAGE = 11
    LATENT = 12
    """Places of latent thoughts, which a program writes."""


MARKS = {Kind.TOOLS: Mark.SCHEMA, Kind.THOUGHT: Mark.SCRATCH}
"""Kinds of the tokens that reasoning heads see."""


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text; strings that look like control tokens stay text."""

    kind: Kind
    text: str
    call: int = -1
    """Index of the call, within its message, that the text is part of; -1 for none or syntax shared by all calls."""


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """One control token, in its written form."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Latents:
    """Places of latent thoughts."""

    count: int


Segment = Text | Control | Image | Latents


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One rendered segment; its tokens are ids[begin:end]. If texts are tokenized together, a token with characters of
    several spans belongs to one of them (docs/reference/chat.md), so a span may be empty (begin == end)."""

    kind: Kind
    role: Role
    message: int
    """Index of the message; -1 for none (begin of text, an added system message, the generation prompt)."""
    text: str
    begin: int
    end: int
    call: int = -1
    """Index of the call, within its message, that the span is part of; -1 for none or syntax shared by all calls."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
    """Token ids of a conversation, with kind, role and message of each token. T tokens, N assistant messages."""

    ids: np.ndarray
    """int32[T]"""
    kinds: np.ndarray
    """uint8[T]: Kind"""
    roles: np.ndarray
    """uint8[T]: Role"""
    messages: np.ndarray
    """int32[T]: index of the message, -1 for none"""
    written: np.ndarray
    """bool[T]: whether the assistant generates the token: all tokens after its header, the stop token included"""
    decisions: np.ndarray
    """int32[N]: index of the first generated token of each assistant message, where it decides to call or to answer"""
    spans: Sequence[Span]

    @property
    def marks(self) -> np.ndarray:
        """uint8[T]: what each token is to reasoning heads (Mark)."""
        table = np.full(len(Kind), Mark.NONE, np.uint8)
        table[list(MARKS)] = list(MARKS.values())
        return table[self.kinds]

    @property
    def text(self) -> str:
        """The whole text, with control tokens in their written form."""
        return "".join(span.text for span in self.spans)

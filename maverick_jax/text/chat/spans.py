"""What a conversation is written as: segments before tokenising, spans and one record per token after it."""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np

from maverick_jax.text.chat.conversation import Image, Role


class Kind(enum.IntEnum):
    """What a token is part of, known from how it was written. The numbers are stored in data: give new kinds new ones
    (below 256) and leave these as they are."""

    CONTROL = 0
    """A control token: begins and ends messages, headers, calls, thoughts."""
    HEADER = 1
    """The name of a role and the empty line after it."""
    SYSTEM = 2
    TOOLS = 3
    """The declaration of the tools and how to call them."""
    USER = 4
    TEXT = 5
    """What the assistant says in a message without calls."""
    THOUGHT = 6
    """What the assistant thinks, and what it says before its calls."""
    CALL_SYNTAX = 7
    """Brackets, quotes and fixed words of a call."""
    CALL_NAME = 8
    CALL_ARGUMENTS = 9
    RESULT = 10
    """What a tool gave back."""
    IMAGE = 11


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text, whatever it holds."""

    kind: Kind
    text: str
    call: int = -1
    """Which of its message's calls it writes; -1: none, or what they share."""


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """One control token, by its written form."""

    name: str


Segment = Text | Control | Image


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One segment as rendered. Its tokens are ids[begin:end]; of texts that were tokenised together, a token that
    holds parts of several belongs to one of them (docs/reference/chat.md), so that begin == end may be."""

    kind: Kind
    role: Role
    message: int
    """Index of the message; -1 where it belongs to none (begin of text, a header nobody wrote)."""
    text: str
    begin: int
    end: int
    call: int = -1
    """Which of its message's calls it writes; -1: none, or what they share."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rendered:
    """Token ids of a conversation and, for each token, what it is part of. T tokens."""

    ids: np.ndarray
    """int32[T]"""
    kinds: np.ndarray
    """uint8[T]: Kind"""
    roles: np.ndarray
    """uint8[T]: Role"""
    messages: np.ndarray
    """int32[T]: index of the message, -1 for none"""
    written: np.ndarray
    """bool[T]: what the assistant writes itself when it generates: all after its header, its stop token included"""
    decisions: np.ndarray
    """int32[N]: for each assistant message, the index of the first token it writes, where a call or an answer begins"""
    spans: Sequence[Span]

    @property
    def text(self) -> str:
        """The whole, control tokens by their written form."""
        return "".join(span.text for span in self.spans)

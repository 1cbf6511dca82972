"""The base of all sources. A source is a list of parts, such as files; a part yields documents in order.

Every defect of a file raises one InputError that names the file and the record or line.
"""

import abc
from collections.abc import Iterator
from typing import Annotated, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from data.decontamination import Decontamination
from data.fill_in_the_middle import FillInTheMiddle
from maverick_jax.settings.section import Section
from maverick_jax.text import Tokenizer

Positive = Annotated[int, Field(ge=1)]


class SourceDocument(NamedTuple):
    """One document of a source."""

    where: str
    """File and record or line, for messages."""
    content: str | np.ndarray
    """The text, or the token ids if the source generates token ids."""


class SourcePart(Protocol):
    """A piece of a source, such as a file."""

    @property
    def label(self) -> str: ...

    def identity(self) -> list[str | int]:
        """Values that change whenever the documents may have changed. The cache key of the tokenized source contains
        them."""
        ...

    def documents(self) -> Iterator[SourceDocument]: ...


class SourceConfig(Section):
    """The base of all kinds of sources: a corpus, and its share of the rows."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the rows, relative to the weights of the other sources."""
    weight_end: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Weight at the end of the run, or of the stage; from `weight` to it in a straight line. A run or a stage whose
    weights move cannot be made longer later. null: it does not move."""
    held_out_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Fraction of this source that is held out. 1: the whole source is only for evaluation; 0: none of it. null:
    `data.held_out_fraction`."""


class MadeBlock(NamedTuple):
    """Consecutive documents of a source that makes them."""

    ids: np.ndarray
    """int32[tokens]: the ids of all documents, one after the other."""
    kinds: np.ndarray
    """uint8[tokens]: `TokenKind`."""
    lengths: np.ndarray
    """int64[documents]"""


class MadeSource(SourceConfig, abc.ABC):
    """The base of sources that make documents from a seed, with the kind of each token."""

    @abc.abstractmethod
    def identity(self) -> list:
        """JSON values that change whenever the documents would."""

    @abc.abstractmethod
    def blocks(self, name: str, tokenizer: Tokenizer) -> Iterator[MadeBlock]:
        """All documents of this source, which the config calls `name`, in order. Raises InputError for a tokenizer that
        they cannot be written with."""


class DocumentSource(SourceConfig, abc.ABC):
    """The base of sources of documents."""

    fill_in_the_middle: FillInTheMiddle | None = None
    """Rearranges documents so that a model learns to fill in a middle, such as of code. null: it does not."""

    decontaminate: Decontamination | None = None
    """Evaluations: documents that share a stretch of words with their texts are left out. null: none is."""

    @abc.abstractmethod
    def parts(self, name: str, tokenizer: Tokenizer) -> list[SourcePart]:
        """The parts of this source, which the config calls `name`, in reading order. Raises InputError for a path that
        does not exist."""

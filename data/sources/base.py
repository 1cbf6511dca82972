"""The base of all sources: a source is a list of parts (files, or a seed); a part yields documents in order.

Every defect of a file becomes one InputError that names the file and the record or line.
"""

import abc
from collections.abc import Iterator
from typing import Annotated, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from maverick_jax.settings.section import Section
from maverick_jax.text import Tokenizer

Positive = Annotated[int, Field(ge=1)]


class SourceDocument(NamedTuple):
    where: str
    """File and record or line, for messages."""
    content: str | np.ndarray
    """Text, or token ids where the source makes those."""


class SourcePart(Protocol):
    """A piece of a source that is tokenized in one go."""

    @property
    def label(self) -> str: ...

    def identity(self) -> list[str | int]:
        """What changes when the documents may have changed: part of the key of the tokenized data in the cache."""
        ...

    def documents(self) -> Iterator[SourceDocument]: ...


class SourceConfig(Section):
    """The base of the kinds of sources: one corpus, and how much of the rows comes from it."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the rows, relative to the weights of the other sources."""
    held_out_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """As `data.held_out_fraction`, of this source. 1: all of it is for evaluation, so that files of their own can be;
    0: none. null: as all."""


class DocumentSource(SourceConfig, abc.ABC):
    """The base of sources of documents."""

    @abc.abstractmethod
    def parts(self, name: str, tokenizer: Tokenizer) -> list[SourcePart]:
        """The parts of this source, called `name` in the config, in the order they are read. Raises InputError for a
        path that leads nowhere."""

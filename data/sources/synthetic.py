"""Documents generated from a seed."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data.order import derive
from data.sources.base import DocumentSource, Positive, SourceDocument, SourcePart
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer


class SyntheticSource(DocumentSource):
    """`kind: synthetic`: documents of token ids that follow a simple pattern, for tests and benchmarks."""

    kind: Literal["synthetic"] = "synthetic"
    """Documents generated from a seed."""
    format: Annotated[Literal["synthetic"], Field(exclude=True)] = "synthetic"
    """The same as `kind: synthetic`."""
    pattern: Literal["cycle", "random"] = "cycle"
    """`cycle`: each document counts up from a random symbol by a random step, so that all but the first two tokens can
    be learned; `random`: independent uniform symbols."""
    documents: Positive = 256
    """Number of documents."""
    length: Annotated[int, Field(ge=2)] = 1024
    """Mean length of a document, in tokens; lengths are uniform between 0.5 and 1.5 times the mean."""
    symbols: Annotated[int, Field(ge=2)] = 64
    """Number of different tokens: the first ordinary ids of the tokenizer."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the documents; their order follows from the run's seed."""

    def parts(self, name: str, tokenizer: Tokenizer) -> list[SourcePart]:
        controls = set(tokenizer.controls.values())
        room = tokenizer.vocab_size - len(controls)
        if self.symbols > room:
            raise InputError(f"data.sources.{name}.symbols: {self.symbols} is more than the {room} ordinary tokens "
                             f"of tokenizer {tokenizer.name}")  # fmt: skip
        ordinary = (i for i in range(tokenizer.vocab_size) if i not in controls)
        alphabet = np.array([next(ordinary) for _ in range(self.symbols)], np.int32)
        return [_SyntheticPart(f"{name} (synthetic)", self, alphabet)]


@dataclasses.dataclass(frozen=True)
class _SyntheticPart:
    label: str
    config: SyntheticSource
    alphabet: np.ndarray
    """int32[symbols]: the token id of each symbol."""

    def identity(self) -> list[str | int]:
        c = self.config
        return ["synthetic", c.pattern, c.documents, c.length, c.symbols, c.corpus_seed]

    def documents(self) -> Iterator[SourceDocument]:
        for number in range(self.config.documents):
            yield SourceDocument(f"{self.label}: document {number}", self.alphabet[self._symbols(number)])

    def _symbols(self, number: int) -> np.ndarray:
        c = self.config
        # NumPy guarantees only for the legacy generator that its streams stay the same in all versions.
        random = np.random.RandomState(derive(c.corpus_seed, "synthetic", number) % 2**32)
        length = random.randint((c.length + 1) // 2, c.length + c.length // 2 + 1)
        if c.pattern == "random":
            return random.randint(0, c.symbols, length)
        start, step = random.randint(0, c.symbols), random.randint(1, c.symbols)
        return (start + step * np.arange(length)) % c.symbols

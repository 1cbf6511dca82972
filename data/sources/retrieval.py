"""Texts with records, some of which are asked for later (`data.retrieval`): what a model has to look up to be right.

A record is asked for at any distance, so documents of the length of a row train retrieval at all lengths up to it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data.order import derive
from data.retrieval import draw_records, draw_sentences
from data.sources.base import DocumentSource, Positive, SourceDocument, SourcePart
from maverick_jax.text import Tokenizer

LAYOUT = 1
"""Changes whenever equal settings would give other documents."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


class RetrievalSource(DocumentSource):
    """`kind: retrieval`: records and questions among ordinary sentences, drawn from a seed."""

    kind: Literal["retrieval"] = "retrieval"
    """Texts with records of which some are asked for later."""
    format: Annotated[Literal["retrieval"], Field(exclude=True)] = "retrieval"
    """The same as `kind: retrieval`."""
    documents: Positive = 1000
    """Number of documents."""
    characters: Annotated[int, Field(ge=64)] = 250
    """Most characters of a document; it has at most one sentence fewer."""
    sentences: Fraction = 0.1
    """Share of the lines that are ordinary sentences."""
    questions: Fraction = 0.5
    """Share of the other lines that ask for a record before them, each one equally likely. When all 36 records are
    there, all other lines do."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the documents; their order follows from the run's seed."""

    def parts(self, name: str, tokenizer: Tokenizer) -> list[SourcePart]:
        return [_RetrievalPart(f"{name} (retrieval)", self)]


@dataclasses.dataclass(frozen=True)
class _RetrievalPart:
    label: str
    config: RetrievalSource

    def identity(self) -> list[str | int]:
        settings = {"documents", "characters", "sentences", "questions", "corpus_seed"}
        return ["retrieval", LAYOUT, str(sorted(self.config.model_dump(include=settings).items()))]

    def documents(self) -> Iterator[SourceDocument]:
        for number in range(self.config.documents):
            yield SourceDocument(f"{self.label}: document {number}", self._text(number))

    def _text(self, number: int) -> str:
        c = self.config
        # NumPy guarantees only for the legacy generator that its streams stay the same in all versions.
        random = np.random.RandomState(derive(c.corpus_seed, "retrieval", number) % 2**32)
        most = c.characters // len("A=k\n")
        records, sentences = draw_records(random), draw_sentences(random, most)
        lines, left, known = [], c.characters, 0
        for i, (is_sentence, is_question, which) in enumerate(random.random_sample((most, 3))):
            if is_sentence < c.sentences:
                line = sentences[i]
            elif known and (is_question < c.questions or known == len(records)):
                line = records[int(which * known)].asked
            else:
                line = records[known].line
                known += 1
            if len(line) > left:
                break
            lines.append(line)
            left -= len(line)
        return "".join(lines)

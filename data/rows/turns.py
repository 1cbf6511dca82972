"""The assistant's turns in trajectories and in conversations with pictures, each with its prompt, so that a model can
be asked to generate them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.rows.dataset import Dataset, SourceRows
from data.trajectories.decisions import DECIDES, Decision
from data.trajectories.kinds import TokenKind


class Turn(NamedTuple):
    """One turn of the assistant: indices into the tokens of its source."""

    source: SourceRows
    decision: Decision
    run: int
    """Index of the first token of its trajectory."""
    begin: int
    """Index of the first token that the assistant writes, after the header of its turn."""
    end: int
    """Index after the turn's last token, its stop token."""

    @property
    def prompt(self) -> list[int]:
        """Ids of the trajectory's tokens up to and including the turn's header, like a conversation rendered with a
        generation prompt."""
        return self.source.store["tokens"][self.run : self.begin].tolist()

    @property
    def tiles(self) -> np.ndarray | None:
        """uint8[N, C, S, S]: the tiles of the prompt's pictures, in reading order; None if it has none."""
        tiles = self.source.tiles
        return None if tiles is None else tiles.between(self.run, self.begin)

    @property
    def said(self) -> list[int]:
        return self.source.store["tokens"][self.begin : self.end].tolist()

    @property
    def dialect(self) -> str:
        return self.source.store.meta["dialect"]


def turns_of(data: Dataset) -> Iterator[Turn]:
    """Every assistant turn of the trajectories, and of the samples with pictures, in this split, in file order."""
    for source in data.sources:
        if "choices" in source.store.arrays:
            yield from _turns(source)


def _turns(source: SourceRows) -> Iterator[Turn]:
    store, runs = source.store, source.documents
    offsets, begins, kinds = store["offsets"], store["turns"], store["kinds"]
    low, high = int(offsets[runs.start]), int(offsets[runs.stop])
    for at in (low + np.flatnonzero(store["choices"][low:high] & DECIDES)).tolist():
        run = int(np.searchsorted(offsets, at, "right")) - 1
        turn = int(np.searchsorted(begins, at, "right"))
        end = min(int(begins[turn]) if turn < begins.size else high, int(offsets[run + 1]))
        first = int(begins[turn - 1])
        first += int(np.argmax(kinds[first:end] != TokenKind.HEADER))
        yield Turn(source, Decision(int(store["choices"][at]) & DECIDES), int(offsets[run]), first, end)

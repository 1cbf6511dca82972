"""The assistant's turns in agent runs, each with all that was written before it: what a model may be asked to write."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.rows.dataset import Dataset, SourceRows
from data.trajectories.decisions import DECIDES, Decision
from data.trajectories.kinds import TokenKind


class Turn(NamedTuple):
    source: SourceRows
    decision: Decision
    run: int
    """Index of the first token of its run."""
    begin: int
    """Of the first token that the assistant writes, after the header of its turn."""
    end: int
    """After the last one, which ends the turn."""

    @property
    def prompt(self) -> list[int]:
        """Ids of the run up to the turn and its header: as rendered with a generation prompt."""
        return self.source.store["tokens"][self.run : self.begin].tolist()

    @property
    def said(self) -> list[int]:
        return self.source.store["tokens"][self.begin : self.end].tolist()

    @property
    def dialect(self) -> str:
        return self.source.store.meta["dialect"]


def turns_of(data: Dataset) -> Iterator[Turn]:
    """Every assistant's turn of the runs in this split, in the order of the files."""
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

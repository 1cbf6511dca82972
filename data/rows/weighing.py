"""Token kinds, decision bits and loss weights of labels: the fields that rows have if their data contains
trajectories."""

import dataclasses
from typing import Protocol

import numpy as np

from data.array_folder import ArrayFolder
from data.rows.fields import FIELDS, MARKS, Row, filled
from data.rows.packing import RowLayout
from data.trajectories.decisions import DECIDES
from data.trajectories.kinds import TokenKind, marks_of
from data.trajectories.weights import KindWeights, OutcomeWeights, weigh

KINDS, CHOICES = "kinds", "choices"
NO_KIND = FIELDS[KINDS].fill
"""Token kind at places without a label that counts."""


class Weighing(Protocol):
    def fields(self, store: ArrayFolder, places: RowLayout, length: int) -> Row:
        """`kinds`, `choices`, `loss_weights` and `marks`, each [length]."""
        ...


@dataclasses.dataclass(frozen=True)
class OfRuns:
    """Loss weights of a source of trajectories: the weight of the token kind, times the weight of the decision's class
    for decisions, times the weight of the trajectory's outcome. If a message has its own weight, it replaces the first
    two factors."""

    kinds: KindWeights
    outcomes: OutcomeWeights
    decisions: np.ndarray
    """float32[4]: weight by Decision; 1 for tokens without a decision."""

    def fields(self, store: ArrayFolder, places: RowLayout, length: int) -> Row:
        label = places.label[places.counts]
        kinds = store["kinds"][label]
        run = np.searchsorted(store["offsets"], label, "right") - 1
        of_run = self.outcomes.of_many(store["success"][run], store["reward"][run])
        choices, own = store["choices"][label], store["own"][label]
        weights = weigh(self.kinds.table(), kinds, own) * of_run
        balanced = np.where(np.isnan(own), self.decisions[choices & DECIDES], np.float32(1))
        return _fields(places, kinds, choices, weights * balanced, length) | marked(store, places, length)


@dataclasses.dataclass(frozen=True)
class OfTexts:
    """One token kind and loss weight for all labels of a text source, whose data also has sources of trajectories."""

    kinds: KindWeights

    def fields(self, store: ArrayFolder, places: RowLayout, length: int) -> Row:
        kinds = np.full(int(places.counts.sum()), TokenKind.DOCUMENT, np.uint8)
        row = _fields(places, kinds, np.zeros_like(kinds), self.kinds.table()[kinds], length)
        return row | filled((MARKS,), length)


def marked(store: ArrayFolder, places: RowLayout, length: int) -> Row:
    """`marks` [length] of a row of rendered conversations."""
    row = filled((MARKS,), length)
    row[MARKS][places.place] = marks_of(store["kinds"][places.token])
    return row


def _fields(places: RowLayout, kinds: np.ndarray, choices: np.ndarray, weights: np.ndarray, length: int) -> Row:
    row = filled((KINDS, CHOICES, "loss_weights"), length)
    at = places.place[places.counts]
    row[KINDS][at], row[CHOICES][at], row["loss_weights"][at] = kinds, choices, weights
    return row

"""Where the arrays of each layer lie.

Layers that repeat a pattern are stacked: `periods/layer_k` holds layer k of every period, along a leading axis. The
layers after the last whole period lie in `tail/layer_k`, one in each.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

PERIODS, TAIL = "periods", "tail"

_IN_LAYER = re.compile(rf"({PERIODS}|{TAIL})/layer_(\d+)/(.+)")


class Slot(NamedTuple):
    """A set of arrays that holds one layer, or the same layer of every period."""

    run: str
    """`periods` or `tail`."""
    number: int
    """Which layer of the run, from 0."""
    layers: range
    """The layers it holds, from 0 over the whole depth."""

    @property
    def prefix(self) -> str:
        """How the names of its arrays start: `periods/layer_0/`."""
        return f"{self.run}/layer_{self.number}/"

    @property
    def stacked(self) -> int | None:
        """Length of the leading axis that stacks the layers; None: its arrays have no such axis."""
        return len(self.layers) if self.run == PERIODS else None


class Place(NamedTuple):
    """Where one layer is."""

    slot: Slot
    index: int | None
    """Along the leading axis; None: there is none."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """The layers of a model: `num_periods` periods of `period` layers each, then `tail` more."""

    period: int
    num_periods: int
    tail: int

    @classmethod
    def of_names(cls, names: Iterable[str], num_periods: int) -> "Stack":
        """The stack whose arrays have these names, where each array under `periods` stacks `num_periods` layers."""
        found = [match for name in names if (match := _IN_LAYER.fullmatch(name))]
        count = lambda run: 1 + max((int(match[2]) for match in found if match[1] == run), default=-1)
        return cls(count(PERIODS), num_periods, count(TAIL))

    @property
    def num_stacked(self) -> int:
        """Layers that lie under `periods`."""
        return self.period * self.num_periods

    @property
    def depth(self) -> int:
        return self.num_stacked + self.tail

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots, those of the periods first."""
        stacked = self.num_stacked
        periods = [Slot(PERIODS, k, range(k, stacked, self.period)) for k in range(self.period if stacked else 0)]
        return (*periods, *(Slot(TAIL, k, range(stacked + k, stacked + k + 1)) for k in range(self.tail)))

    def place(self, layer: int) -> Place:
        """Where `layer` lies, from 0 over the whole depth. Raises IndexError for a layer that does not exist."""
        if not 0 <= layer < self.depth:
            raise IndexError(f"no layer {layer}: the layers are 0 to {self.depth - 1}")
        if layer < self.num_stacked:
            return Place(self.slots[layer % self.period], layer // self.period)
        return Place(self.slots[len(self.slots) - self.depth + layer], None)

    def find(self, name: str) -> tuple[Slot, str] | None:
        """The slot of an array and the array's name in its layer: `periods/layer_1/attention/q` gives `attention/q`.
        None: the array belongs to no layer."""
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            return None
        first = 0 if match[1] == PERIODS else len(self.slots) - self.tail
        return self.slots[first + int(match[2])], match[3]


def name_in_layer(name: str) -> str | None:
    """The array's name in its layer, whatever the layer; None: it belongs to no layer."""
    match = _IN_LAYER.fullmatch(name)
    return match and match[3]

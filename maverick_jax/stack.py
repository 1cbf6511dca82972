"""The addresses of the layers' arrays.

Layers that repeat a pattern are stacked: `periods/layer_k` contains layer k of every period, along a leading axis. Each
layer after the last whole period has its own `tail/layer_k`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

PERIODS, TAIL = "periods", "tail"

_IN_LAYER = re.compile(rf"({PERIODS}|{TAIL})/layer_(\d+)/(.+)")


class Slot(NamedTuple):
    """A set of arrays that contains one layer, or the same layer of every period."""

    run: str
    """`periods` or `tail`."""
    number: int
    """The layer's number in the run, from 0."""
    layers: range
    """The layers in this slot, counted from 0 over the whole depth."""

    @property
    def prefix(self) -> str:
        """The prefix of its arrays' names, such as `periods/layer_0/`."""
        return f"{self.run}/layer_{self.number}/"

    @property
    def stacked(self) -> int | None:
        """Length of the leading axis that stacks layers; None: no such axis."""
        return len(self.layers) if self.run == PERIODS else None


class LayerAddress(NamedTuple):
    """The address of one layer's arrays."""

    slot: Slot
    index: int | None
    """Index along the leading axis; None: no such axis."""


@dataclasses.dataclass(frozen=True)
class Stack:
    """The layers of a model: `num_periods` periods of `period` layers each, then `tail` more."""

    period: int
    num_periods: int
    tail: int

    @classmethod
    def of_names(cls, names: Iterable[str], num_periods: int) -> "Stack":
        """The stack of arrays with these names. Each array under `periods` stacks `num_periods` layers."""
        found = [match for name in names if (match := _IN_LAYER.fullmatch(name))]
        count = lambda run: 1 + max((int(match[2]) for match in found if match[1] == run), default=-1)
        return cls(count(PERIODS), num_periods, count(TAIL))

    @property
    def num_stacked(self) -> int:
        """Number of layers under `periods`."""
        return self.period * self.num_periods

    @property
    def depth(self) -> int:
        return self.num_stacked + self.tail

    @functools.cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All slots: first the slots of the periods, then the slots of the tail."""
        stacked = self.num_stacked
        periods = [Slot(PERIODS, k, range(k, stacked, self.period)) for k in range(self.period if stacked else 0)]
        return (*periods, *(Slot(TAIL, k, range(stacked + k, stacked + k + 1)) for k in range(self.tail)))

    def place(self, layer: int) -> LayerAddress:
        """The address of `layer`, counted from 0 over the whole depth. Raises IndexError for a layer that does not
        exist."""
        if not 0 <= layer < self.depth:
            raise IndexError(f"no layer {layer}: the layers are 0 to {self.depth - 1}")
        if layer < self.num_stacked:
            return LayerAddress(self.slots[layer % self.period], layer // self.period)
        return LayerAddress(self.slots[len(self.slots) - self.depth + layer], None)

    def find(self, name: str) -> tuple[Slot, str] | None:
        """The slot of an array and the array's name in its layer: `periods/layer_1/attention/q` gives `attention/q`.
        None if the array belongs to no layer."""
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            return None
        first = 0 if match[1] == PERIODS else len(self.slots) - self.tail
        return self.slots[first + int(match[2])], match[3]


def name_in_layer(name: str) -> str | None:
    """The array's name in its layer; None if it belongs to no layer."""
    match = _IN_LAYER.fullmatch(name)
    return match and match[3]

"""How the places of a row are divided among the devices that share it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from maverick_jax.sharding import ShardingRules, size_of


@dataclasses.dataclass(frozen=True)
class RowSplit:
    """A row of `length` places on `ways` devices, `length` a multiple of `ways`.

    A row is cut into blocks of consecutive places. Where possible each device holds two, block i and the i-th from the
    end: attention to all earlier keys then costs every device the same ("zigzag"; with one block each, the last device
    would have twice the mean). Arrays whose length axis is split hold the blocks in the order of the devices.
    """

    length: int
    ways: int

    @classmethod
    def of(cls, length: int, rules: ShardingRules, sizes: Mapping[str, int]) -> "RowSplit":
        """That of rows whose logical axis `length` follows `rules` on a mesh with axes of these sizes."""
        return cls(length, size_of(dict(sizes), rules.length))

    @property
    def balanced(self) -> bool:
        """Whether each device holds two blocks."""
        return self.ways > 1 and self.length % (2 * self.ways) == 0

    @property
    def block(self) -> int:
        """Places of a block."""
        return self.length // (2 * self.ways if self.balanced else self.ways)

    @property
    def places(self) -> np.ndarray:
        """int32[length]: the place of the row that each element of a split array holds."""
        return self.split(np.arange(self.length, dtype=np.int32), 0)

    def split(self, x, axis: int):
        """An array (of NumPy or JAX) whose `axis` has a row's places in order, in the order of the devices."""
        if not self.balanced:
            return x
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        halves = x.reshape(*before, 2, self.ways, self.block, *after)
        first, last = (halves[(slice(None),) * axis + (i,)] for i in (0, 1))
        return _of(x).stack([first, _turned(last, axis)], axis=axis + 1).reshape(x.shape)

    def whole(self, x, axis: int):
        """The inverse of `split`."""
        if not self.balanced:
            return x
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        pairs = x.reshape(*before, self.ways, 2, self.block, *after)
        first, last = (pairs[(slice(None),) * (axis + 1) + (i,)] for i in (0, 1))
        return _of(x).stack([first, _turned(last, axis)], axis=axis).reshape(x.shape)


def _turned(x, axis: int):
    return x[(slice(None),) * axis + (slice(None, None, -1),)]


def _of(x):
    """The module of an array's functions."""
    return x.__array_namespace__()

"""Readers of parameters that are assembled from other readers. They load only the parts that are requested. See
`maverick_jax.checkpoint.readers.Reader`."""

import dataclasses

import numpy as np

from maverick_jax.checkpoint.readers import Index, Reader, order_of


@dataclasses.dataclass(frozen=True)
class Zeros:
    """An array of zeros."""

    shape: tuple[int, ...]

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        return np.zeros(_size(index, self.shape), dtype)


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Readers of one shape, stacked along a new first axis."""

    entries: tuple[Reader, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.entries), *self.entries[0].shape)

    @property
    def order(self) -> tuple[int, ...]:
        return (0, *(axis + 1 for axis in order_of(self.entries[0])))

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        return np.stack([entry(index[1:], dtype) for entry in self.entries[index[0]]])


@dataclasses.dataclass(frozen=True)
class Padded:
    """A reader's array in the leading corner of a larger array of zeros."""

    reader: Reader
    shape: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        return order_of(self.reader)

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        bounds = [part.indices(n)[:2] for part, n in zip(index, self.shape, strict=True)]
        inside = [(a, min(b, n)) for (a, b), n in zip(bounds, self.reader.shape, strict=True)]
        out = np.zeros([b - a for a, b in bounds], dtype)
        if all(a < b for a, b in inside):
            read = self.reader(tuple(slice(a, b) for a, b in inside), dtype)
            out[tuple(slice(0, b - a) for a, b in inside)] = read
        return out


@dataclasses.dataclass(frozen=True)
class SameForEach:
    """gate and up [D, F], stacked and repeated for each of `experts` experts: [experts, D, 2, F]."""

    experts: int
    gate: Reader
    up: Reader
    order = (1, 2, 3, 0)
    """Experts come last, so that a block contains all of them and their common weights are read once."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.experts, self.gate.shape[0], 2, self.gate.shape[1])

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        expert, row, side, column = index
        sides = [reader((row, column), dtype) for reader in (self.gate, self.up)[side]]
        one = np.stack(sides, axis=1)
        return np.broadcast_to(one, (len(range(self.experts)[expert]), *one.shape))


def _size(index: Index, shape: tuple[int, ...]) -> list[int]:
    return [len(range(n)[part]) for part, n in zip(index, shape, strict=True)]

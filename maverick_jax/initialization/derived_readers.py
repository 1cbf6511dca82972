"""Readers of parameters that are assembled from other readers. They load only the parts that are requested. See
`maverick_jax.checkpoint.readers.Reader`."""

import dataclasses

import numpy as np

from maverick_jax.checkpoint.readers import Index, Reader, order_of
from maverick_jax.text.tokenizers.vocabulary_move import VocabularyMove


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


@dataclasses.dataclass(frozen=True)
class OfTokens:
    """A reader's array in which each entry along one axis is the mean of some of the reader's, and some are lowered."""

    reader: Reader
    axis: int
    move: VocabularyMove
    lowered: np.ndarray
    """bool [rows]: entries to which the mean of the unused ones is added."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(self.move.counts) if i == self.axis else n for i, n in enumerate(self.reader.shape))

    @property
    def order(self) -> tuple[int, ...]:
        """The axis comes last, so that a block contains all tokens, whose pieces may be any."""
        return (*(i for i in range(len(self.shape)) if i != self.axis), self.axis)

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        begin, end, _ = index[self.axis].indices(len(self.move.counts))
        everything = slice(0, self.reader.shape[self.axis])
        read = self.reader(
            tuple(everything if i == self.axis else part for i, part in enumerate(index)), np.dtype(np.float32)
        )
        old = np.moveaxis(read, self.axis, 0)
        counts, before = self.move.counts[begin:end], int(self.move.counts[:begin].sum())
        pieces = self.move.pieces[before : before + int(counts.sum())]
        out, some = np.zeros((end - begin, *old.shape[1:]), np.float32), counts > 0
        if some.any():
            sums = np.add.reduceat(old[pieces], (np.cumsum(counts) - counts)[some], axis=0)
            out[some] = sums / counts[some].reshape(-1, *(1,) * (old.ndim - 1)).astype(np.float32)
        if (lowered := self.lowered[begin:end]).any():
            out[lowered] += old[self.move.unused].mean(axis=0)
        return np.moveaxis(out, 0, self.axis).astype(dtype)


def _size(index: Index, shape: tuple[int, ...]) -> list[int]:
    return [len(range(n)[part]) for part, n in zip(index, shape, strict=True)]

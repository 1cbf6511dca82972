"""Compute a Hugging Face tensor block by block from one of our parameters.

Every Hugging Face tensor is one of our parameters with some indices fixed (a layer, an expert) and the other axes
permuted. A block is a contiguous range of the tensor's rows, so a file is written from front to back.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from maverick_jax.checkpoint.readers import Reader
from maverick_jax.huggingface.names import Entry

BLOCK_BYTES = 8 * 2**20
"""Approximate size of a block; up to twice as much if the source is stored in larger chunks."""
_TILE = 128
"""Side of the square tiles of a transpose; a source and a target tile fit a core's cache."""


@dataclasses.dataclass(frozen=True)
class View:
    """A Hugging Face tensor as a view of one of our parameters."""

    name: str
    """Name of the tensor."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    ours: str
    """Path of our parameter."""
    fixed: tuple[int | None, ...]
    """Per axis of our parameter: the fixed index of the tensor, or None for the whole axis."""
    axes: tuple[int, ...]
    """The axes that are not fixed, in the tensor's order: ascending, except that the input axes of a linear layer move
    from the front to the end."""

    @classmethod
    def of(cls, entry: Entry) -> "View":
        lead = () if entry.period is None else (entry.period,)
        rank = len(entry.our_shape)
        axes = tuple(len(lead) + axis for axis in entry.layout.axes(rank))
        return cls(entry.theirs, entry.their_shape, entry.ours, (*lead, *[None] * rank), axes)

    def experts(self, ours: tuple[int, ...]) -> list["View"]:
        """Views of a separate linear layer [out, in] for each expert, instead of the fused tensor: `gate_proj` and
        `up_proj`, or `down_proj`, expert by expert. `ours`: shape of our parameter."""
        prefix, _, fused = self.name.rpartition(".")
        lead = tuple(at for at in self.fixed if at is not None)
        expert = len(lead)
        if fused == "down_proj":  # ours: expert, in, out
            parts, axes = {"down_proj": ()}, (expert + 2, expert + 1)
        else:  # ours: expert, in, gate or up, out
            parts, axes = {"gate_proj": (0,), "up_proj": (1,)}, (expert + 3, expert + 1)
        shape = tuple(ours[axis] for axis in axes)
        return [
            View(f"{prefix}.{e}.{part}.weight", shape, self.ours, (*lead, e, None, *half, None), axes)
            for e, (part, half) in itertools.product(range(ours[expert]), parts.items())
        ]

    def blocks(self, reader: Reader, dtype: np.dtype, most_bytes: int) -> Iterator[Callable[[], np.ndarray]]:
        """The tensor's elements in order, as functions that each return a contiguous array of about `most_bytes`."""
        chunks = getattr(reader, "chunks", reader.shape)
        sizes = [reader.shape[axis] for axis in self.axes]
        steps = _steps(sizes, [chunks[axis] for axis in self.axes], dtype.itemsize, most_bytes)
        for start in itertools.product(*[range(0, size, step) for size, step in zip(sizes, steps, strict=True)]):
            index = [slice(at, at + 1) if at is not None else slice(None) for at in self.fixed]
            for axis, first, step, size in zip(self.axes, start, steps, sizes, strict=True):
                index[axis] = slice(first, min(first + step, size))
            yield functools.partial(self._block, reader, tuple(index), dtype)

    def _block(self, reader: Reader, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        return self._in_their_order(reader(index, dtype))

    def _in_their_order(self, part: np.ndarray) -> np.ndarray:
        held = [axis for axis, at in enumerate(self.fixed) if at is not None]
        theirs = part.transpose(*self.axes, *held)
        if theirs.flags.c_contiguous:
            return theirs
        inputs = self.axes[self.axes.index(min(self.axes)) :]
        return _transposed(np.ascontiguousarray(part).reshape(math.prod(part.shape[axis] for axis in inputs), -1))


def _steps(sizes: list[int], chunks: list[int], item_bytes: int, most_bytes: int) -> list[int]:
    """Shape of a block: whole along the last axes, partial along one (a whole number of chunks if that is not much
    larger), single entries along the axes before it."""
    steps, inner = [1] * len(sizes), item_bytes
    for axis in reversed(range(len(sizes))):
        fit = max(1, most_bytes // inner)
        if fit < sizes[axis]:
            chunk = min(chunks[axis], sizes[axis])
            whole_chunks = fit - fit % chunk or chunk
            steps[axis] = whole_chunks if whole_chunks <= 2 * fit else fit
            break
        steps[axis] = sizes[axis]
        inner *= sizes[axis]
    return steps


def _transposed(x: np.ndarray) -> np.ndarray:
    """A contiguous x.T."""
    out = np.empty(x.shape[::-1], x.dtype)
    for i in range(0, x.shape[0], _TILE):
        for j in range(0, x.shape[1], _TILE):
            out[j : j + _TILE, i : i + _TILE] = x[i : i + _TILE, j : j + _TILE].T
    return out

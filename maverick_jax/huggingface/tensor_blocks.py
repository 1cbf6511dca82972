"""One Hugging Face tensor, made block by block from one of our parameters.

Every tensor of theirs is our parameter with some indices held fixed (a layer, an expert) and its other axes put into
another order. A block is a run of their rows, so a file is written from front to back whatever the layouts are.
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
"""About how much of a tensor is held at once; up to twice that where the source is stored in larger chunks."""
_TILE = 128
"""Side of the squares that a transpose goes by: both sides of one stay in a core's cache."""


@dataclasses.dataclass(frozen=True)
class View:
    """Where one tensor of theirs is in our parameters."""

    name: str
    shape: tuple[int, ...]
    """Theirs."""
    ours: str
    """Path of our parameter."""
    fixed: tuple[int | None, ...]
    """Per axis of our parameter: the index that the tensor is at, or None for all of the axis."""
    axes: tuple[int, ...]
    """The axes that are not fixed, in the order in which they make up the tensor: ascending, or ascending but for the
    input axes of a linear layer, which go from the front to the end."""

    @classmethod
    def of(cls, entry: Entry) -> "View":
        lead = () if entry.period is None else (entry.period,)
        rank = len(entry.our_shape)
        axes = tuple(len(lead) + axis for axis in entry.layout.axes(rank))
        return cls(entry.theirs, entry.their_shape, entry.ours, (*lead, *[None] * rank), axes)

    def experts(self, ours: tuple[int, ...]) -> list["View"]:
        """Routed experts as linear layers of their own, [out, in] each, in place of their fused tensor: `gate_proj`
        and `up_proj`, or `down_proj`, of each expert in turn. `ours`: shape of our parameter."""
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
        """The tensor's elements in order, as contiguous arrays of the order of `most_bytes`, each made when called."""
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
    """Shape of a block: all of the last axes, some of one, one of each before it; whole chunks where that is near."""
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

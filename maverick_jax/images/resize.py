"""Antialiased bilinear resizing of 8-bit images, bit-identical to PyTorch's for `uint8` on a CPU.

Source: PyTorch 2.13, `aten::_upsample_bilinear2d_aa` (the vectorized kernel that torchvision calls). Along each axis an
output pixel is a weighted sum of input pixels, rounded half up. Weights are integers of at most 15 bits with one binary
point per axis. The width is resized first, then the height, with 8-bit values in between. Pillow uses 22 bits.

All products and sums are integers that the chosen float type holds exactly, so a matrix product in any order is exact:
each block of outputs is one product of its weights with its range of inputs.
"""

import dataclasses
import functools

import numpy as np

WEIGHT_BITS, MAX_POINT = 15, 22
BLOCK_SPAN = 48
"""Target number of inputs per block of outputs: fewer waste less arithmetic, more make matrix products efficient."""
MOST_BYTES = 1 << 20
"""Maximum size, in bytes, of the floats that a plane is converted to at a time."""
MOST_PRODUCTS = 1 << 18
"""Maximum number of multiplications in one matrix product. OpenBLAS splits larger ones over threads, which is slower as
soon as the cores are busy, and images are prepared while a training run is using them."""


@dataclasses.dataclass(frozen=True)
class FilterWeights:
    """Resizing along one axis: output i is `round(sum_j weights[i, j] * input[first[i] + j] / 2**point)`."""

    first: np.ndarray
    """int64[out]"""
    weights: np.ndarray
    """int64[out, taps]; zero beyond an output's own taps and beyond the end of the input."""
    point: int


def resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one channel, uint8[H, W] -> uint8[*size], without aligning corners. `size` is (height, width), each at
    least 1."""
    if size[1] != plane.shape[1]:
        plane = _across(plane, size[1])
    if size[0] != plane.shape[0]:
        plane = _down(plane, size[0])
    return plane


@functools.lru_cache(maxsize=64)
def filter_weights(before: int, after: int) -> FilterWeights:
    """The triangle filter, two outputs wide (two inputs wide when enlarging), sampled at the inputs."""
    scale = before / after
    reach, squeeze = (scale, 1 / scale) if scale >= 1 else (1.0, 1.0)
    center = scale * (np.arange(after) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((center + reach + 0.5).astype(np.int64), before)
    tap = np.arange(2 * int(np.ceil(reach)) + 1)
    distance = np.abs((tap + first[:, None] - center[:, None] + 0.5) * squeeze)
    weights = np.where(tap < (end - first)[:, None], np.maximum(1 - distance, 0), 0)
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]  # summed in order, as PyTorch does
    point = next((p for p in range(MAX_POINT) if int(0.5 + weights.max() * 2 ** (p + 1)) >> WEIGHT_BITS), MAX_POINT)
    return FilterWeights(first, (0.5 + weights * 2**point).astype(np.int64), point)


def _across(plane: np.ndarray, width: int) -> np.ndarray:
    """Resizes every row: uint8[H, W] -> uint8[H, width]."""
    plan = _blocked_filter(plane.shape[1], width)
    out = np.empty((plane.shape[0], width), np.uint8)
    for begin in range(0, plane.shape[0], plan.step):
        some = slice(begin, begin + plan.step)
        chunk = plane[some].astype(plan.dtype)
        sums = np.empty((len(chunk), width), plan.dtype)
        for outputs, inputs, matrix in plan.blocks:
            np.matmul(chunk[:, inputs], matrix.T, out=sums[:, outputs])
        out[some] = plan.rounded(sums)
    return out


def _down(plane: np.ndarray, height: int) -> np.ndarray:
    """Resizes every column: uint8[H, W] -> uint8[height, W]."""
    plan = _blocked_filter(plane.shape[0], height)
    out = np.empty((height, plane.shape[1]), np.uint8)
    for begin in range(0, plane.shape[1], plan.step):
        some = slice(begin, begin + plan.step)
        chunk = plane[:, some].astype(plan.dtype)
        sums = np.empty((height, chunk.shape[1]), plan.dtype)
        for outputs, inputs, matrix in plan.blocks:
            np.matmul(matrix, chunk[inputs], out=sums[outputs])
        out[:, some] = plan.rounded(sums)
    return out


class _BlockedFilter:
    """The filter weights of one axis as matrices, one for each block of outputs."""

    def __init__(self, before: int, after: int):
        along = filter_weights(before, after)
        self.half, self.unit = 2.0 ** (along.point - 1), 2.0**-along.point
        largest = 255 * int(along.weights.sum(axis=1).max()) + self.half
        self.dtype = np.dtype(np.float32 if largest < 2**24 else np.float64)
        size = max(1, round(BLOCK_SPAN * min(1.0, after / before)))
        self.blocks = [self._block(along, begin, min(begin + size, after)) for begin in range(0, after, size)]
        largest_block = max(matrix.size for _, _, matrix in self.blocks)
        self.step = max(1, min(MOST_PRODUCTS // largest_block, MOST_BYTES // (before * self.dtype.itemsize)))
        """Rows (or columns) to process at a time."""

    def _block(self, along: FilterWeights, begin: int, end: int) -> tuple[slice, slice, np.ndarray]:
        outputs = slice(begin, end)
        first, weights = along.first[outputs], along.weights[outputs]
        matrix = np.zeros((end - begin, first[-1] - first[0] + weights.shape[1]), self.dtype)
        columns = (first - first[0])[:, None] + np.arange(weights.shape[1])
        np.put_along_axis(matrix, columns, weights.astype(self.dtype), axis=1)
        used = int(np.flatnonzero(matrix.any(axis=0))[-1]) + 1
        return outputs, slice(int(first[0]), int(first[0]) + used), matrix[:, :used]

    def rounded(self, sums: np.ndarray) -> np.ndarray:
        """Convert sums of products to pixel values, in place; truncation to uint8 completes the rounding. The weights
        of an output exceed 1 by at most half a unit per tap, so white stays below 256."""
        sums += self.half
        sums *= self.unit
        return sums


@functools.lru_cache(maxsize=64)
def _blocked_filter(before: int, after: int) -> _BlockedFilter:
    """The same for all channels of a picture, and for pictures of the same size."""
    return _BlockedFilter(before, after)

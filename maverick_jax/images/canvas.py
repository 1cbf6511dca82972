"""Which grid of tiles a picture is laid on, and how large it lies there."""

import functools
import math

import numpy as np

from maverick_jax.images.config import ImageConfig

Size = tuple[int, int]
"""(height, width)."""


def choose_grid(size: Size, config: ImageConfig) -> Size:
    """Tiles down and across for a picture of `size` pixels.

    Of all grids the one that enlarges the picture least; where each would shrink it, the one that shrinks it least;
    of several that scale it alike, the smallest. (`resize_to_max_canvas`: the one that enlarges it most.)
    """
    grids = _grids(config.max_tiles)
    # Scales are compared in float32, as by the public processor: which ones are equal depends on it.
    sides = (grids * config.tile_size).astype(np.float32)
    scales = (sides / np.array(size, np.float32)).min(axis=1)
    larger = scales[scales >= 1]
    if not larger.size:
        scale = scales.max()
    else:
        scale = larger.max() if config.resize_to_max_canvas else larger.min()
    # Two grids of one scale and area do not come first: the smaller of each side makes a third of the same scale.
    height, width = grids[np.argmax(scales == scale)]
    return int(height), int(width)


@functools.lru_cache(maxsize=8)
def _grids(max_tiles: int) -> np.ndarray:
    """int64[N, 2]: all grids, smallest first."""
    grids = [(h, w) for h in range(1, max_tiles + 1) for w in range(1, max_tiles // h + 1)]
    return np.array(sorted(grids, key=math.prod))


def fitted_size(size: Size, grid: Size, config: ImageConfig) -> Size:
    """Height and width, at least 1, that a picture of `size` is resized to on `grid`: as large as the canvas allows
    without distortion, but no side beyond the larger of its own length and a tile's (`resize_to_max_canvas`: beyond
    the canvas)."""
    limit_h, limit_w = (
        _Limit(side, tiles * config.tile_size, None if config.resize_to_max_canvas else max(side, config.tile_size))
        for side, tiles in zip(size, grid, strict=True)
    )
    if limit_w.scale < limit_h.scale:
        height, width = min(math.floor(size[0] * limit_w.scale), limit_h.length), limit_w.length
    else:
        height, width = limit_h.length, min(math.floor(size[1] * limit_h.scale), limit_w.length)
    return max(height, 1), max(width, 1)


class _Limit:
    """How long one side may become. The public processor divides in float32 where the canvas is what limits, and in
    float64 elsewhere; a Python float and a float32 meet as float32, here as there."""

    def __init__(self, side: int, canvas: int, enlarged: int | None):
        if enlarged is None or canvas < enlarged:
            self.length, self.scale = canvas, np.float32(canvas) / np.float32(side)
        else:
            self.length, self.scale = enlarged, enlarged / side

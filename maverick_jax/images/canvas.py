"""Choose the grid of tiles for a picture, and the picture's size on that grid."""

import functools
import math

import numpy as np

from maverick_jax.images.config import ImageConfig

Size = tuple[int, int]
"""(height, width)."""


def choose_grid(size: Size, config: ImageConfig) -> Size:
    """Grid (tiles down, tiles across) for a picture of `size` pixels.

    The grid that enlarges the picture least (with `resize_to_max_canvas`: most); if every grid shrinks the picture,
    the one that shrinks it least. Among grids of equal scale, the one with the fewest tiles.
    """
    grids = _grids(config.max_tiles)
    # Scales are compared in float32, as in the public processor, so that the same ones count as equal.
    sides = (grids * config.tile_size).astype(np.float32)
    scales = (sides / np.array(size, np.float32)).min(axis=1)
    larger = scales[scales >= 1]
    if not larger.size:
        scale = scales.max()
    else:
        scale = larger.max() if config.resize_to_max_canvas else larger.min()
    # The first match is unique: if two grids of equal area have this scale, so has the smaller grid of their shorter
    # sides, which comes before both.
    height, width = grids[np.argmax(scales == scale)]
    return int(height), int(width)


@functools.lru_cache(maxsize=8)
def _grids(max_tiles: int) -> np.ndarray:
    """int64[N, 2]: all grids (tiles down, tiles across), in ascending order of their number of tiles."""
    grids = [(h, w) for h in range(1, max_tiles + 1) for w in range(1, max_tiles // h + 1)]
    return np.array(sorted(grids, key=math.prod))


def fitted_size(size: Size, grid: Size, config: ImageConfig) -> Size:
    """Height and width, at least 1, to which a picture of `size` is resized on `grid`: as large as the canvas allows
    without distortion. Unless `resize_to_max_canvas` is set, a side does not grow beyond the larger of its own length
    and one tile."""
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
    """Largest length and scale of one side. As in the public processor, the scale is a float32 if the canvas is the
    limit and a float64 otherwise; comparing the two promotes to float32."""

    def __init__(self, side: int, canvas: int, enlarged: int | None):
        if enlarged is None or canvas < enlarged:
            self.length, self.scale = canvas, np.float32(canvas) / np.float32(side)
        else:
            self.length, self.scale = enlarged, enlarged / side

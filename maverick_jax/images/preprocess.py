"""Cut a picture into the tiles that the vision encoder reads, and batch the tiles of several pictures."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
from PIL import Image

from maverick_jax.errors import InputError
from maverick_jax.images.canvas import Size, choose_grid, fitted_size
from maverick_jax.images.config import ImageConfig
from maverick_jax.images.decode import to_rgb
from maverick_jax.images.resize import resize


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTiles:
    """One picture as model input."""

    pixel_values: np.ndarray
    """float32[n, 3, S, S]: the grid's tiles, row by row. If there are several, the overview follows: the whole picture,
    resized to one tile."""
    grid: Size
    """(tiles down, tiles across)."""


def preprocess(image: Image.Image, config: ImageConfig) -> ImageTiles:
    """Cut a picture of any mode into tiles: it is placed at the top left of its grid (`canvas.choose_grid`), and the
    rest is black. With `normalization="bfloat16"` the values are bfloat16 numbers that equal those of transformers'
    `Llama4ImageProcessor`. Raises InputError for 16-bit grayscale."""
    pixels, grid = cut_tiles(image, config)
    return ImageTiles(pixel_table(config.normalization).take(pixels), grid)


def cut_tiles(image: Image.Image, config: ImageConfig) -> tuple[np.ndarray, Size]:
    """The tiles of `preprocess` before normalization, uint8[n, 3, S, S], and their grid."""
    rgb = to_rgb(image)
    size = rgb.height, rgb.width
    grid, side = choose_grid(size, config), config.tile_size
    resized = _resizer(rgb, config)
    fitted = fitted_size(size, grid, config)
    canvas = np.zeros((3, grid[0] * side, grid[1] * side), np.uint8)
    canvas[:, : fitted[0], : fitted[1]] = resized(fitted)
    pixels = canvas.reshape(3, grid[0], side, grid[1], side).transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
    if len(pixels) > 1:
        pixels = np.concatenate([pixels, resized((side, side))[None]])
    return pixels, grid


def _resizer(rgb: Image.Image, config: ImageConfig) -> Callable[[Size], np.ndarray]:
    """A function from (height, width) to the picture at that size, uint8[3, height, width]."""
    if config.normalization == "bfloat16":
        planes = [np.asarray(channel) for channel in rgb.split()]
        return lambda size: np.stack([resize(plane, size) for plane in planes])
    bilinear = Image.Resampling.BILINEAR
    return lambda size: np.asarray(rgb.resize((size[1], size[0]), bilinear)).transpose(2, 0, 1)


@functools.cache
def pixel_table(normalization: str) -> np.ndarray:
    """float32[256]: the normalized value of each pixel value, `(x / 255 - 0.5) / 0.5` with the chosen rounding."""
    x, half = np.arange(256, dtype=np.float32), np.float32(0.5)
    if normalization == "float32":
        return (x / np.float32(255) - half) / half

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    return rounded(rounded(rounded(x * np.float32(1 / 255)) - half) / half)


def batch_tiles(images: Sequence[ImageTiles], bucket: int | None = None) -> np.ndarray:
    """float32[n, 3, S, S]: the tiles of all `images` (at least one), in order. With `bucket` the batch is padded with
    tiles of zeros to that number (`bucket_of` chooses one, so that few shapes are compiled). Raises InputError if the
    images have more than `bucket` tiles."""
    tiles = sum(len(image.pixel_values) for image in images)
    if bucket is not None and tiles > bucket:
        raise InputError(f"{len(images)} image(s) have {tiles} tiles; expected at most {bucket}, the size of the batch")
    batch = np.zeros((bucket or tiles, *images[0].pixel_values.shape[1:]), np.float32)
    np.concatenate([image.pixel_values for image in images], out=batch[:tiles])
    return batch


def bucket_of(tiles: int) -> int:
    """Smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, ... (powers of two, and midpoints between them) that is at
    least `tiles`. Padding is less than a third of the batch, and each doubling adds two shapes to compile."""
    if tiles < 1:
        raise ValueError(f"{tiles} tiles: expected at least 1")
    power = 1 << (tiles - 1).bit_length()
    between = power // 4 * 3
    return between if tiles <= between else power

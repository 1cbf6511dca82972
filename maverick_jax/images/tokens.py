"""The tokens that represent a picture. They are inserted by id; text is never searched for them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.images.canvas import Size


class HasControls(Protocol):
    """The part of a tokenizer that `ImageTokenIds.of` needs."""

    name: str
    controls: Mapping[str, int]
    """Written form of every control token -> its id."""


@dataclasses.dataclass(frozen=True)
class ImageTokenIds:
    """Ids of a tokenizer's six image tokens."""

    image_start: int
    image_end: int
    tile_x_separator: int
    """Separates two tiles of a row."""
    tile_y_separator: int
    """Ends each row of tiles, including the last."""
    image: int
    """Precedes the overview, the tile that shows the whole picture."""
    patch: int
    """Stands for one image feature: the model replaces its embedding with that feature."""

    @classmethod
    def of(cls, tokenizer: HasControls) -> "ImageTokenIds":
        """The image token ids of `tokenizer`. Raises InputError naming the tokens that it lacks."""
        written = {field.name: f"<|{field.name}|>" for field in dataclasses.fields(cls)}
        missing = [text for text in written.values() if text not in tokenizer.controls]
        if missing:
            raise InputError(f"tokenizer {tokenizer.name} has no {', '.join(missing)}; expected a tokenizer with "
                             "Llama 4's image tokens, which images in a prompt need")  # fmt: skip
        return cls(**{name: tokenizer.controls[text] for name, text in written.items()})


def image_tokens(grid: Size, ids: ImageTokenIds, patches_per_tile: int) -> list[int]:
    """The `num_image_tokens` tokens of a picture on `grid` (tiles down, tiles across): one `patch` for each image
    feature of each tile, in the order of `ImageTiles.pixel_values`."""
    down, across = grid
    tile = [ids.patch] * patches_per_tile
    row = [*tile, *(across - 1) * [ids.tile_x_separator, *tile], ids.tile_y_separator]
    rows = down * row if down * across > 1 else []
    return [ids.image_start, *rows, ids.image, *tile, ids.image_end]


def num_image_tokens(grid: Size, patches_per_tile: int) -> int:
    """Length of `image_tokens`, computed without building the list."""
    down, across = grid
    if down * across == 1:
        return patches_per_tile + 3
    return patches_per_tile * (down * across + 1) + down * (across - 1) + down + 3


def num_patches(rows: Sequence[np.ndarray] | np.ndarray, patch: int) -> np.ndarray:
    """int64[len(rows)]: how often each of `rows` (int[T] token ids, of any lengths) has the id `patch`."""
    return np.array([np.count_nonzero(np.asarray(row) == patch) for row in rows], np.int64)

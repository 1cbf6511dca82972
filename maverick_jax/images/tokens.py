"""The tokens that stand for a picture, by id: no text is ever searched for them."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from maverick_jax.errors import InputError
from maverick_jax.images.canvas import Size


class HasControls(Protocol):
    """What is asked of a tokenizer."""

    name: str
    controls: Mapping[str, int]
    """Every control token, by its written form."""


@dataclasses.dataclass(frozen=True)
class ImageTokenIds:
    """Ids of a tokenizer's six image tokens."""

    image_start: int
    image_end: int
    tile_x_separator: int
    """Between two tiles of a row."""
    tile_y_separator: int
    """After each row of tiles, the last one too."""
    image: int
    """Before the tile that shows the whole picture."""
    patch: int
    """Stands for one row of image features: the only one of these that the model does not look up in its table."""

    @classmethod
    def of(cls, tokenizer: HasControls) -> "ImageTokenIds":
        """Raises InputError naming the tokens that the tokenizer lacks."""
        written = {field.name: f"<|{field.name}|>" for field in dataclasses.fields(cls)}
        missing = [text for text in written.values() if text not in tokenizer.controls]
        if missing:
            raise InputError(f"tokenizer {tokenizer.name} has no {', '.join(missing)}; expected a tokenizer with "
                             "Llama 4's image tokens, without which there is no way to write an image")  # fmt: skip
        return cls(**{name: tokenizer.controls[text] for name, text in written.items()})


def image_tokens(grid: Size, ids: ImageTokenIds, patches_per_tile: int) -> list[int]:
    """The tokens of a picture on `grid` (tiles down and across), `num_image_tokens` of them: one `patch` for each
    image feature of each tile, in the order of `Tiles.pixel_values`."""
    down, across = grid
    tile = [ids.patch] * patches_per_tile
    row = [*tile, *(across - 1) * [ids.tile_x_separator, *tile], ids.tile_y_separator]
    rows = down * row if down * across > 1 else []
    return [ids.image_start, *rows, ids.image, *tile, ids.image_end]


def num_image_tokens(grid: Size, patches_per_tile: int) -> int:
    """Length of `image_tokens`, without making them."""
    down, across = grid
    if down * across == 1:
        return patches_per_tile + 3
    return patches_per_tile * (down * across + 1) + down * (across - 1) + down + 3

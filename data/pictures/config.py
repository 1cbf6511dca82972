"""Settings of pictures in rows: how they are cut into tiles, and how many tiles rows have."""

from typing import Annotated

import pydantic
from pydantic import Field

from maverick_jax.images import ImageConfig
from maverick_jax.images.config import Positive
from maverick_jax.settings.section import Section

CHANNELS = 3


class TilesConfig(Section):
    """How pictures become tiles, and how many tiles rows have. The first three keys describe the model's image encoder
    (`model.vision`); their defaults are those of the released Llama 4 models."""

    tile_size: Positive = 336
    """Side of a tile, in pixels: `model.vision.image_size`."""
    patch_size: Positive = 14
    """Side of a patch, in pixels: `model.vision.patch_size`."""
    pixel_shuffle_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`model.vision.pixel_shuffle_ratio`."""
    max_tiles: Annotated[int, Field(ge=1, le=256)] = 16
    """Maximum number of tiles of one picture, not counting the overview."""
    per_row: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of tiles of a row. null: the smallest number with which packing needs hardly more rows, so that
    rows have about equally many tiles and little padding is encoded."""
    budgets: Annotated[int, Field(ge=1, le=32)] = 4
    """Maximum number of different tile budgets. All rows of a step have room for as many tiles as the step's budget
    says, and each budget is one compiled program."""
    prefetch_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    """Maximum number of bytes of tiles that a process prepares in advance. Fewer batches than `data.prefetch` are
    prepared if they would take more; one always is."""

    @pydantic.model_validator(mode="after")
    def _makes_whole_tokens(self):
        self.images  # noqa: B018  creating it checks the sizes
        return self

    @property
    def images(self) -> ImageConfig:
        """How a picture is cut into tiles."""
        return self.cut(self.max_tiles)

    def cut(self, max_tiles: int) -> ImageConfig:
        """The same for another maximum number of tiles."""
        return ImageConfig(tile_size=self.tile_size, patch_size=self.patch_size,
                           pixel_shuffle_ratio=self.pixel_shuffle_ratio, max_tiles=max_tiles)  # fmt: skip

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return CHANNELS, self.tile_size, self.tile_size

    def most_in_row(self, length: int) -> int:
        """The most tiles that a row of `length` tokens may have."""
        room = length // (self.images.patches_per_tile + 1)
        return room if self.per_row is None else min(room, self.per_row)

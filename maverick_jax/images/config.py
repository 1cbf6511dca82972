"""Settings of image preprocessing: how a picture is cut into tiles."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from maverick_jax.network import VisionConfig, require_whole_tokens
from maverick_jax.settings.section import Section

Positive = Annotated[int, Field(ge=1, le=4096)]


class ImageConfig(Section):
    """How a picture is cut into tiles. The defaults are the values of all released Llama 4 models."""

    tile_size: Positive = 336
    """Side S of a tile, in pixels; equals the vision encoder's `image_size`."""
    patch_size: Positive = 14
    """Side of a patch, in pixels."""
    pixel_shuffle_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Side of a tile's grid of image tokens divided by the side of its grid of patches; its inverse is a whole
    number."""
    max_tiles: Annotated[int, Field(ge=1, le=256)] = 16
    """Maximum number of tiles of one picture, not counting the overview."""
    resize_to_max_canvas: bool = False
    """Enlarge a picture to fill its canvas, instead of to one tile at most."""
    normalization: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic that turns pixels into model input. `bfloat16`: as in transformers and vLLM, with every step rounded
    to bfloat16 and torchvision's resizing; `float32`: as in Meta's reference, with Pillow's resizing."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        require_whole_tokens("tile_size", self.tile_size, self.patch_size, self.pixel_shuffle_ratio)
        return self

    @classmethod
    def of(cls, vision: VisionConfig) -> "ImageConfig":
        """Settings that match the image encoder `vision`."""
        return cls(
            tile_size=vision.image_size,
            patch_size=vision.patch_size,
            pixel_shuffle_ratio=vision.pixel_shuffle_ratio,
        )

    @property
    def patches_per_tile(self) -> int:
        """Number of `<|patch|>` tokens of one tile (144 by default)."""
        return (self.tile_size // self.patch_size // round(1 / self.pixel_shuffle_ratio)) ** 2

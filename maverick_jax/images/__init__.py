"""Images: decode files, cut pictures into the tiles the model reads, and make the tokens that represent them."""

from maverick_jax.images.canvas import choose_grid
from maverick_jax.images.config import ImageConfig
from maverick_jax.images.decode import decoder_version, open_image
from maverick_jax.images.preprocess import ImageTiles, batch_tiles, bucket_of, cut_tiles, pixel_table, preprocess
from maverick_jax.images.tokens import ImageTokenIds, image_tokens, num_image_tokens, num_patches

__all__ = [
    "ImageConfig",
    "ImageTiles",
    "ImageTokenIds",
    "batch_tiles",
    "bucket_of",
    "choose_grid",
    "cut_tiles",
    "decoder_version",
    "image_tokens",
    "num_image_tokens",
    "num_patches",
    "open_image",
    "pixel_table",
    "preprocess",
]

"""Images: from a file to the tiles that the model reads, and the tokens that stand for them in a text."""

from maverick_jax.images.config import ImageConfig
from maverick_jax.images.decode import open_image
from maverick_jax.images.preprocess import Tiles, batch_tiles, bucket_of, preprocess
from maverick_jax.images.tokens import ImageTokenIds, image_tokens, num_image_tokens

__all__ = [
    "ImageConfig",
    "ImageTokenIds",
    "Tiles",
    "batch_tiles",
    "bucket_of",
    "image_tokens",
    "num_image_tokens",
    "open_image",
    "preprocess",
]

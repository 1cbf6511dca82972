"""Prompts of text and pictures as tokens, and the tokens that end what a model writes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from maverick_jax.config import ModelConfig
from maverick_jax.images import ImageConfig, ImageTokenIds, batch_tiles, image_tokens, preprocess
from maverick_jax.model.tiles import encoder_of
from maverick_jax.text import Tokenizer

TURN_ENDS = ("<|eot|>", "<|eom|>")
"""Control tokens that end an answer in a conversation, in addition to the tokenizer's end of text."""


def prompt_ids_of(
    config: ModelConfig, tokenizer: Tokenizer, prompt: str, images: Sequence[Image.Image] = ()
) -> tuple[list[int], np.ndarray | None]:
    """The tokens of `images` and then `prompt` (ordinary text), from the start of a text on; and the images' tiles,
    float32[N, C, S, S]. Raises InputError for images if the model has no image encoder or the tokenizer no image
    tokens."""
    shown, tiles = _shown(config, tokenizer, images)
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [*start, *shown, *tokenizer.encode(prompt)], tiles


def _shown(
    config: ModelConfig, tokenizer: Tokenizer, images: Sequence[Image.Image]
) -> tuple[list[int], np.ndarray | None]:
    """The tokens of `images` and their tiles float32[N, C, S, S]."""
    if not images:
        return [], None
    encoder, ids = ImageConfig.of(encoder_of(config)), ImageTokenIds.of(tokenizer)
    tiles = [preprocess(image, encoder) for image in images]
    return [i for t in tiles for i in image_tokens(t.grid, ids, encoder.patches_per_tile)], batch_tiles(tiles)


def stop_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end the text."""
    ends = [tokenizer.eos_id, *(tokenizer.controls.get(name) for name in TURN_ENDS)]
    return frozenset(token for token in ends if token is not None)

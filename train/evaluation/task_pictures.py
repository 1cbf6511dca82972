"""The pictures of examples: their tokens in the prompt, and their tiles, which are cut when an engine is asked."""

import pathlib
from collections.abc import Sequence

import numpy as np

from data.tasks import Example
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig, ImageTokenIds, choose_grid, cut_tiles, image_tokens, open_image
from maverick_jax.network import VisionConfig
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Conversation, Image, Message


class TaskPictures:
    """Pictures as one model reads them."""

    def __init__(self, encoder: VisionConfig | None, tokenizer: Tokenizer):
        """encoder: that of the model; None: it has none. Raises InputError then, and for a tokenizer without tokens for
        pictures."""
        if encoder is None:
            raise InputError("its examples show pictures; expected a model with an image encoder (model.vision)")
        self._config, self._ids = ImageConfig.of(encoder), ImageTokenIds.of(tokenizer)

    def shown(self, example: Example) -> Conversation:
        """The prompt, with the pictures before the last message's text. Raises InputError for a picture that cannot be
        decoded."""
        if not isinstance(example.prompt, Conversation) or example.choices:
            raise InputError("shows pictures; expected a conversation whose next message is written")
        images = [Image(self._tokens(path)) for path in example.images]
        *before, last = example.prompt.messages
        return Conversation([*before, Message(last.role, (*images, *last.parts))], example.prompt.tools)

    def tiles(self, example: Example) -> np.ndarray | None:
        """uint8[N, C, S, S]: the tiles of the pictures, in order; None: there are none."""
        if not example.images:
            return None
        return np.concatenate([cut_tiles(open_image(path), self._config)[0] for path in example.images])

    def _tokens(self, path: pathlib.Path) -> Sequence[int]:
        picture = open_image(path)
        grid = choose_grid((picture.height, picture.width), self._config)
        return image_tokens(grid, self._ids, self._config.patches_per_tile)

"""The pictures of a request: checked, encoded a few tiles at a time, and put where `<|patch|>` stands."""

import hashlib

import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.images import ImageConfig
from maverick_jax.images.preprocess import pixel_table
from maverick_jax.model.tiles import encoder_of


class Pictures:
    """The tiles of one request, uint8 or normalized [N, C, S, S], and their features as far as they are encoded."""

    def __init__(self, config: ModelConfig, prompt: np.ndarray, tiles: np.ndarray):
        """Raises InputError for a text model, and unless `prompt` has the `<|patch|>` tokens of all tiles."""
        vision = encoder_of(config)
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        if tiles.ndim != 4 or tiles.shape[1:] != shape or tiles.dtype not in (np.uint8, np.float32):
            wanted = ", ".join(map(str, shape))
            raise InputError(f"tiles: {tiles.dtype} of shape {tiles.shape}; expected uint8 of (tiles, {wanted})")
        self.places = np.flatnonzero(prompt == vision.image_token_index)
        wanted = len(tiles) * vision.tokens_per_tile
        if len(self.places) != wanted:
            found = f"{len(self.places)} ids {vision.image_token_index} (<|patch|>)"
            raise InputError(f"tiles: the prompt has {found}; expected {wanted} for {len(tiles)} tiles")
        self._config, self._tiles, self._rows = config, tiles, vision.tokens_per_tile
        self._found: list[np.ndarray] = []

    @property
    def left(self) -> int:
        """Tiles that are not encoded."""
        return len(self._tiles) - len(self._found)

    def next_pixels(self, count: int) -> np.ndarray:
        """float32[count, C, S, S]: the next tiles, then zeros."""
        tiles = self._tiles[len(self._found) :][:count]
        if tiles.dtype == np.uint8:
            tiles = pixel_table(ImageConfig.of(encoder_of(self._config)).normalization).take(tiles)
        return np.concatenate([tiles, np.zeros((count - len(tiles), *tiles.shape[1:]), np.float32)])

    def add(self, features: np.ndarray) -> None:
        """Features [n, P, D] of the tiles that `next_pixels` gave."""
        self._found += list(features[: self.left])

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The places from `start` to `stop` that show pictures, counted from `start`, and their features [n, D]."""
        first, last = np.searchsorted(self.places, (start, stop))
        numbers = range(first, last)
        found = [self._found[i // self._rows][i % self._rows] for i in numbers]
        return self.places[first:last] - start, np.stack(found) if found else np.zeros((0, self._found[0].shape[1]))

    def mark(self, identity: np.ndarray) -> None:
        """Sets numbers of the pictures in int64[n], so that prompts with other pictures are others."""
        for i, tile in enumerate(self._tiles):
            digest = hashlib.blake2b(tile.tobytes(), digest_size=7).digest()
            identity[self.places[i * self._rows : (i + 1) * self._rows]] = -1 - int.from_bytes(digest, "big")

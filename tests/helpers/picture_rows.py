"""Hand-made rows with pictures: samples of text and pictures, alone or several in a row."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from maverick_jax.images import ImageTokenIds, image_tokens
from maverick_jax.network import VisionConfig

Grid = tuple[int, int]
"""Tiles down and across."""


def ids_of(vision: VisionConfig) -> ImageTokenIds:
    """The last six ids up to `<|patch|>`."""
    last = vision.image_token_index
    return ImageTokenIds(image_start=last - 2, image_end=last - 1, tile_x_separator=last - 5,
                         tile_y_separator=last - 4, image=last - 3, patch=last)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One document."""

    tokens: np.ndarray
    """int32[n]"""
    tiles: np.ndarray
    """uint8[m, C, S, S]"""
    of_picture: np.ndarray
    """bool[n]: whether a token belongs to a picture."""


def sample(vision: VisionConfig, grids: Sequence[Grid], seed: int = 0, text: int = 4) -> Sample:
    """A document with pictures on these grids: `text` random tokens before each, and after the last."""
    rng, ids = np.random.default_rng(seed), ids_of(vision)
    pieces = []
    for grid in grids:
        pieces += [(rng.integers(0, ids.tile_x_separator, text), False)]
        pieces += [(np.array(image_tokens(grid, ids, vision.tokens_per_tile)), True)]
    pieces += [(rng.integers(0, ids.tile_x_separator, text), False)]
    count = sum(h * w + (h * w > 1) for h, w in grids)
    shape = (count, vision.num_channels, vision.image_size, vision.image_size)
    tiles = rng.integers(0, 256, shape).astype(np.uint8)
    tokens = np.concatenate([part for part, _ in pieces]).astype(np.int32)
    return Sample(tokens, tiles, np.concatenate([np.full(len(part), flag) for part, flag in pieces]))


def rows_of(rows: Sequence[Sequence[Sample]], length: int, tiles: int | None = None) -> dict[str, np.ndarray]:
    """A batch [B, ...] of rows that hold these samples, one after the other. `tiles`: room of each row; None: as many
    as the fullest row has."""
    B = len(rows)
    fields = {name: np.zeros((B, length), np.int32) for name in ("tokens", "labels", "positions", "segment_ids")}
    weights = np.zeros((B, length), np.float32)
    own = [[tile for s in samples for tile in s.tiles] for samples in rows]
    room = max(map(len, own)) if tiles is None else tiles
    for row, samples in enumerate(rows):
        at = 0
        for number, s in enumerate(samples, start=1):
            here, n = slice(at, at + len(s.tokens)), len(s.tokens)
            fields["tokens"][row, here] = s.tokens
            fields["labels"][row, here] = np.append(s.tokens[1:], 0)
            fields["positions"][row, here] = np.arange(n)
            fields["segment_ids"][row, here] = number
            weights[row, here] = np.append(~s.of_picture[1:], False)
            at += n
    found = {**fields, "loss_weights": weights}
    if room:
        shape = next(s.tiles.shape[1:] for samples in rows for s in samples)
        found["tiles"] = np.zeros((B, room, *shape), np.uint8)
        for row, some in enumerate(own):
            found["tiles"][row, : len(some)] = np.array(some).reshape(-1, *shape)
    return found

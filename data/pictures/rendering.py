"""Renders samples to tokens, with fewer tiles where a sample would not fit into a row."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from data.pictures.config import TilesConfig
from data.pictures.sample import SampleProblem, as_problems
from data.trajectories.fields import FieldCounts, Fields
from data.trajectories.formats import openai
from data.trajectories.kinds import TokenKind
from data.trajectories.trajectory import Trajectory
from maverick_jax.images import ImageTokenIds, choose_grid, image_tokens, num_image_tokens
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Image, Kind, Rendered, render

TooLong = Literal["windows", "fewer_tiles", "refuse"]


@dataclasses.dataclass(frozen=True)
class SampleLimits:
    """What a row has room for."""

    config: TilesConfig
    length: int
    """Tokens."""
    tiles: int
    too_long: TooLong
    fewest: int
    """The smallest `max_tiles` that is tried so that a sample fits whole."""

    def identity(self) -> list:
        """Values that change whenever samples would be fitted otherwise."""
        config = self.config
        sizes = [config.tile_size, config.patch_size, config.pixel_shuffle_ratio, config.max_tiles]
        return [*sizes, self.length, self.tiles, self.too_long, self.fewest]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture of a sample."""

    number: int
    """Its number in the store."""
    size: tuple[int, int]
    """(height, width), upright."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The tokens [begin, end) of a picture, which are never separated."""

    begin: int
    end: int
    picture: Shown
    max_tiles: int
    """The setting with which it is cut into tiles."""
    tiles: int
    """Number of tiles, with the overview."""


@dataclasses.dataclass(frozen=True, eq=False)
class RenderedSample:
    """The tokens of a sample. T tokens."""

    ids: np.ndarray
    """int32[T]"""
    kinds: np.ndarray
    """uint8[T]: TokenKind of a document's tokens; empty for a conversation, whose kinds follow from the two below."""
    turns: list[int]
    """Where a document may be cut; empty for a conversation."""
    blocks: tuple[Block, ...]
    trajectory: Trajectory | None = None
    """Of a conversation."""
    rendered: Rendered | None = None
    fewer_tiles: bool = False
    """Whether pictures have fewer tiles than the config would give them."""
    longer: bool = False
    """Whether it does not fit into a row and must be cut."""


class SampleRenderer:
    """Renders samples, one after the other."""

    def __init__(self, tokenizer: Tokenizer, dialect: str, limits: SampleLimits):
        """Raises InputError for a tokenizer without tokens for pictures."""
        self._tokenizer, self._dialect, self._limits = tokenizer, dialect, limits
        self._ids = ImageTokenIds.of(tokenizer)
        self._patches = limits.config.images.patches_per_tile
        self._cut = functools.cache(limits.config.cut)

    def render(self, body: dict[str, Any], shown: Sequence[Shown]) -> RenderedSample:
        """Raises SampleProblem for a body that cannot be rendered, and for a sample that does not fit."""
        limits, most = self._limits, self._limits.config.max_tiles
        with as_problems():
            first = self._rendered(body, shown, most)
        text = first.ids.size - sum(block.end - block.begin for block in first.blocks)
        if self._fits(text, shown, most):
            return first
        if limits.too_long != "refuse":
            for fewer in range(most - 1, min(limits.fewest, most) - 1, -1):
                if self._fits(text, shown, fewer):
                    return dataclasses.replace(self._rendered(body, shown, fewer), fewer_tiles=True)
        if limits.too_long == "windows":
            found = self._rendered(body, shown, self._largest(shown))
            return dataclasses.replace(found, longer=True, fewer_tiles=self._differ(first, found))
        tiles = sum(block.tiles for block in first.blocks)
        room = f"a row has room for {limits.length:,} and {limits.tiles:,} (too_long: {limits.too_long})"
        raise SampleProblem("too_long", f"{first.ids.size:,} tokens, {tiles:,} tiles; {room}")

    def _fits(self, text: int, shown: Sequence[Shown], max_tiles: int) -> bool:
        """Whether a sample with `text` tokens besides those of its pictures fits into a row."""
        grids = [self._grid(picture, max_tiles) for picture in shown]
        tokens = sum(num_image_tokens(grid, self._patches) for grid in grids)
        return text + tokens <= self._limits.length and sum(map(num_tiles, grids)) <= self._limits.tiles

    def _largest(self, shown: Sequence[Shown]) -> int:
        """The greatest `max_tiles` with which each picture takes at most half of a row, or else fits alone. Raises
        SampleProblem if there is none."""
        limits = self._limits
        for share in (2, 1):
            for max_tiles in range(limits.config.max_tiles, 0, -1):
                grids = [self._grid(picture, max_tiles) for picture in shown]
                if all(num_image_tokens(grid, self._patches) <= limits.length // share - (share == 1)
                       and num_tiles(grid) <= limits.tiles // share for grid in grids):  # fmt: skip
                    return max_tiles
        raise SampleProblem("too_long", f"rows of {limits.length:,} tokens, {limits.tiles:,} tiles have no room for "
                                        f"a picture of one tile, {self._patches + 3} tokens")  # fmt: skip

    def _grid(self, picture: Shown, max_tiles: int) -> tuple[int, int]:
        return choose_grid(picture.size, self._cut(max_tiles))

    @staticmethod
    def _differ(one: RenderedSample, other: RenderedSample) -> bool:
        return [block.tiles for block in one.blocks] != [block.tiles for block in other.blocks]

    def _rendered(self, body: dict[str, Any], shown: Sequence[Shown], max_tiles: int) -> RenderedSample:
        grids = [self._grid(picture, max_tiles) for picture in shown]
        images = [Image(image_tokens(grid, self._ids, self._patches)) for grid in grids]
        if "document" in body:
            ids, kinds, begins, turns = self._document(body["document"], images)
            trajectory = rendered = None
        else:
            trajectory = openai.read(Fields(body, "", FieldCounts()), images)
            rendered = render(trajectory.conversation, self._tokenizer, self._dialect)
            ids, kinds, turns = rendered.ids, np.zeros(0, np.uint8), []
            begins = [span.begin for span in rendered.spans if span.kind is Kind.IMAGE]
        blocks = tuple(
            Block(begin, begin + len(image.ids), picture, max_tiles, num_tiles(grid))
            for begin, image, picture, grid in zip(begins, images, shown, grids, strict=True)
        )
        return RenderedSample(ids, kinds, turns, blocks, trajectory, rendered)

    def _document(
        self, parts: Sequence[str | None], images: Sequence[Image]
    ) -> tuple[np.ndarray, np.ndarray, list[int], list[int]]:
        """Ids, kinds, the beginnings of pictures and those of all parts."""
        tokenizer, waiting = self._tokenizer, iter(images)
        texts = iter(tokenizer.encode_batch([part for part in parts if part is not None]))
        ids, kinds, begins, turns = [], [], [], []

        def put(some: Sequence[int], kind: TokenKind) -> None:
            ids.extend(some)
            kinds.extend([kind] * len(some))

        put([] if tokenizer.bos_id is None else [tokenizer.bos_id], TokenKind.DOCUMENT)
        for part in parts:
            turns.append(len(ids))
            if part is None:
                begins.append(len(ids))
                put(next(waiting).ids, TokenKind.IMAGE)
            else:
                put(next(texts), TokenKind.DOCUMENT)
        put([] if tokenizer.eos_id is None else [tokenizer.eos_id], TokenKind.DOCUMENT)
        return np.array(ids, np.int32), np.array(kinds, np.uint8), begins, sorted(set(turns))


def num_tiles(grid: tuple[int, int]) -> int:
    """The number of tiles of a picture on `grid`, with the overview that follows several."""
    tiles = grid[0] * grid[1]
    return tiles + 1 if tiles > 1 else 1

"""Tiles in rows: which pictures a row shows, their tiles, and the tile budget of each step.

All rows of a step have room for as many tiles as the step's budget says, so that a step is one program. The budget is a
pure function of the prepared rows and the step, so all processes choose the same one without communication, and it
takes few values, all of which the first steps have.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import numpy as np

from data.array_folder import ArrayFolder
from data.pictures.config import TilesConfig
from data.rows.blocks import Blocks
from data.rows.packing import Spans
from maverick_jax.images import cut_tiles, open_image

FIRST_STEPS = 50
"""Steps whose needs decide which budgets there are."""
WORTH = 0.03
"""A further budget must save at least this fraction of the tiles of all rows."""


@dataclasses.dataclass(frozen=True)
class ShownPicture:
    """A picture in a row."""

    first: int
    """Its first token: the number of tokens of the row before it."""
    tokens: int
    number: int
    """Its number in the store of pictures."""
    max_tiles: int
    """The setting with which it is cut into tiles."""
    tiles: int


@dataclasses.dataclass(frozen=True)
class SourceTiles:
    """The pictures of one source."""

    store: ArrayFolder
    """The tokenized source (`data.cache.tokenize_pictures`)."""
    pictures: ArrayFolder
    """The encoded pictures (`data.cache.store_pictures`)."""
    config: TilesConfig

    def shown(self, pieces: Spans) -> list[ShownPicture]:
        """The pictures of a row, in reading order."""
        store, found, before = self.store, list[ShownPicture](), 0
        for begin, length in zip(pieces.begin.tolist(), pieces.length.tolist(), strict=True):
            low, high = np.searchsorted(store["picture_begin"], (begin, begin + length)).tolist()
            first, end = store["picture_begin"][low:high], store["picture_end"][low:high]
            others = (store[name][low:high] for name in ("picture_number", "picture_max_tiles", "picture_tiles"))
            columns = (column.tolist() for column in (first + (before - begin), end - first, *others))
            found += [ShownPicture(*values) for values in zip(*columns, strict=True)]
            before += length
        return found

    def between(self, begin: int, end: int) -> np.ndarray | None:
        """uint8[N, C, S, S]: the tiles of the pictures among the source's tokens [begin, end), in reading order. None
        if there are none."""
        no = np.zeros(1, bool)
        shown = self.shown(Spans(np.array([begin]), np.array([end - begin]), no, no, no))
        return np.concatenate([self.cut(picture) for picture in shown]) if shown else None

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of a picture, upright."""
        return int(self.pictures["height"][number]), int(self.pictures["width"][number])

    def encoded(self, number: int) -> bytes:
        """A picture as it was encoded."""
        begin, end = self.pictures["offsets"][number : number + 2]
        return self.pictures["blob"][begin:end].tobytes()

    def cut(self, picture: ShownPicture) -> np.ndarray:
        """uint8[tiles, C, S, S]: the tiles of a picture."""
        with open_image(self.encoded(picture.number), name=f"picture {picture.number}") as image:
            return cut_tiles(image, self.config.cut(picture.max_tiles))[0]


def blocks_of(store: ArrayFolder) -> Blocks:
    """The pictures of a tokenized source."""
    return Blocks(store["picture_begin"], store["picture_end"], store["picture_tiles"].astype(np.int64))


# ---- budgets ---------------------------------------------------------------------------------------------------------


class TileBudgets:
    """The tile budget of every step: the smallest of `values` that is at least the number of tiles of any row of the
    step. Each of `values` is the budget of one of the first steps."""

    def __init__(self, tiles_of: Callable[[int], int], batch_size: int, most: int, count: int):
        """`tiles_of`: the number of tiles of a stream row; `most`: the largest of any row; `count`: how many different
        budgets there may be."""
        self._tiles_of, self._batch_size = tiles_of, batch_size
        needs = [self.need(step) for step in range(FIRST_STEPS)] if most else [0]
        self.values = chosen_budgets(needs, most, count)

    def need(self, step: int) -> int:
        """The largest number of tiles of a row of `step`."""
        first = step * self._batch_size
        return max(self._tiles_of(row) for row in range(first, first + self._batch_size))

    def __call__(self, step: int) -> int:
        need = self.need(step)
        return next(value for value in self.values if value >= need)


def chosen_budgets(needs: Sequence[int], most: int, count: int) -> tuple[int, ...]:
    """At most `count` budgets, ascending, for steps with these needs. The largest is `most`, so that later steps fit;
    the others are chosen to leave the least padding. A step without pictures has a budget of its own, 0, if there is
    room for a second one. A further budget must save WORTH of all tiles."""
    different = sorted(set(needs))
    if most == 0 or len(different) == 1 or count == 1:
        return (most,)
    found = {most} | ({0} if different[0] == 0 else set())
    # the first steps that would have the largest budget: at least those with the largest need
    candidates = different[:-1]

    def cost(values: set[int]) -> int:
        return sum(min(value for value in values if value >= need) for need in needs)

    while len(found) < count:
        left = [value for value in candidates if value not in found]
        if not left:
            break
        best = min(left, key=lambda value: cost(found | {value}))
        if cost(found) - cost(found | {best}) < WORTH * cost(found):
            break
        found.add(best)
    return tuple(sorted(found))


# ---- batches ---------------------------------------------------------------------------------------------------------


@functools.cache
def _threads(count: int, process: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads that decode pictures, for each process; a process that was forked makes its own."""
    return concurrent.futures.ThreadPoolExecutor(count, "pictures")


def stacked(
    rows: Sequence[tuple[SourceTiles | None, Spans]], budget: int, shape: tuple[int, ...], threads: int
) -> np.ndarray:
    """uint8[rows, budget, *shape]: the tiles of rows, each in reading order, and then zeros."""
    found = np.zeros((len(rows), budget, *shape), np.uint8)

    def put(source: SourceTiles, picture: ShownPicture, row: int, at: int) -> None:
        found[row, at : at + picture.tiles] = source.cut(picture)

    pool = _threads(threads, os.getpid())
    waiting = []
    for row, (source, pieces) in enumerate(rows):
        if source is None:
            continue
        at = 0
        for picture in source.shown(pieces):
            waiting.append(pool.submit(put, source, picture, row, at))
            at += picture.tiles
    for future in waiting:
        future.result()
    return found

"""The rows of one source."""

import dataclasses
from typing import NamedTuple

import numpy as np

from data.array_folder import ArrayFolder
from data.order import derive, permuted
from data.rows import packing
from data.rows.fields import Row
from data.rows.packing import Concatenated, Plan
from data.rows.tiles import SourceTiles
from data.rows.weighing import Weighing
from data.rows.windows import Windowed
from data.trajectories.kinds import marks_of
from maverick_jax.reasoning import Mark


class Lap(NamedTuple):
    """Where the rows of a source begin in its endless epochs, and how many there are."""

    epoch: int = 0
    offset: int = 0
    """Tokens of that epoch that are not read, from its start. Only texts that are concatenated have an offset."""
    rows: int | None = None
    """Number of rows, which are those of the next tokens alone; then the first ones come again. None: there is no
    end."""

    def find(self, index: int, plan: Plan) -> "_RowPlace":
        """Where row `index` is, before rows are shuffled."""
        index = index if self.rows is None else index % self.rows
        rest = plan.num_rows if self.offset == 0 else _concatenated(plan).rows_after(self.offset)
        if index < rest:
            return _RowPlace(self.epoch, index, self._among(rest, 0), self.offset)
        more, at = divmod(index - rest, plan.num_rows)
        return _RowPlace(self.epoch + 1 + more, at, self._among(plan.num_rows, rest + more * plan.num_rows), 0)

    def _among(self, count: int, before: int) -> int:
        """How many of the `count` rows of an epoch are read, after `before` rows of earlier epochs."""
        return count if self.rows is None else min(count, self.rows - before)

    def epoch_of(self, rows: int, plan: Plan) -> int:
        """The epoch of the last of the first `rows` rows."""
        return self._replace(rows=None).find(max(0, rows - 1), plan).epoch

    def after(self, rows: int, plan: Concatenated) -> "Lap":
        """Where the first token is that the first `rows` rows do not have."""
        place = self._replace(rows=None).find(rows, plan)
        return Lap(place.epoch, place.offset + place.at * plan.length)


EVERY_ROW = Lap()
"""All rows, from the start of the first epoch on."""


class _RowPlace(NamedTuple):
    epoch: int
    at: int
    among: int
    """How many rows of the epoch are shuffled together."""
    offset: int


def _concatenated(plan: Plan) -> Concatenated:
    assert isinstance(plan, Concatenated), type(plan)
    return plan


@dataclasses.dataclass(frozen=True)
class SourceRows:
    """One source's endless rows in one split."""

    name: str
    store: ArrayFolder
    plan: Plan
    documents: range
    """Which of the store's documents it has; one that is split belongs to both splits."""
    length: int
    seed: int | None
    """Seed of the order of the rows; None: the order of packing."""
    weighing: Weighing | None = None
    """Loss weights of labels by their kind; None: all weights are 1."""
    cell: int | None = None
    """Tokens per cell; None: rows have no cells."""
    tiles: SourceTiles | None = None
    """The pictures of its rows; None: it has none."""
    lap: Lap = EVERY_ROW
    """Which rows of the endless ones they are."""

    def row(self, index: int) -> Row:
        """The fields of a row, but no tiles."""
        places = packing.places_of(self.pieces(index), self.cell)
        row = packing.row_of(self.store["tokens"], places, self.length)
        return row if self.weighing is None else row | self.weighing.fields(self.store, places, self.length)

    def pieces(self, index: int) -> packing.Spans:
        place = self.lap.find(index, self.plan)
        if place.offset:
            return _concatenated(self.plan).pieces(place.epoch, self._shuffled(place), place.offset)
        return self.plan.pieces(place.epoch, self._shuffled(place))

    def num_tiles(self, index: int) -> int:
        """The number of tiles of a row, from the plan alone."""
        if (tiles := self._row_tiles) is None:
            return 0
        return int(tiles[self._shuffled(self.lap.find(index, self.plan))])

    @property
    def most_tiles(self) -> int:
        """The largest number of tiles of a row."""
        return 0 if (tiles := self._row_tiles) is None else int(tiles.max())

    def most_marked(self, mark: Mark) -> int:
        """The largest number of tokens with `mark` in a row of an epoch that is cut from its start."""
        if "kinds" not in self.store.arrays:
            return 0
        before = np.append(0, np.cumsum(marks_of(self.store["kinds"]) == mark, dtype=np.int64))
        pieces = (self.plan.pieces(0, row) for row in range(self.plan.num_rows))
        return max(int((before[p.begin + p.length] - before[p.begin]).sum()) for p in pieces)

    @property
    def _row_tiles(self) -> np.ndarray | None:
        return self.plan.row_tiles if isinstance(self.plan, Windowed) else None

    def _shuffled(self, place: _RowPlace) -> int:
        """The number in the plan of a row of an epoch."""
        if self.seed is None:
            return place.at
        return permuted(place.at, place.among, derive(self.seed, "rows", place.epoch))

"""The rows of one source."""

import dataclasses

import numpy as np

from data.array_folder import ArrayFolder
from data.order import derive, permuted
from data.rows import packing
from data.rows.fields import Row
from data.rows.packing import Plan
from data.rows.tiles import SourceTiles
from data.rows.weighing import Weighing
from data.rows.windows import Windowed


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

    def row(self, index: int) -> Row:
        """The fields of a row, but no tiles."""
        places = packing.places_of(self.pieces(index), self.cell)
        row = packing.row_of(self.store["tokens"], places, self.length)
        return row if self.weighing is None else row | self.weighing.fields(self.store, places, self.length)

    def pieces(self, index: int) -> packing.Spans:
        epoch, at = divmod(index, self.plan.num_rows)
        return self.plan.pieces(epoch, self._place(epoch, at))

    def num_tiles(self, index: int) -> int:
        """The number of tiles of a row, from the plan alone."""
        if (tiles := self._row_tiles) is None:
            return 0
        epoch, at = divmod(index, self.plan.num_rows)
        return int(tiles[self._place(epoch, at)])

    @property
    def most_tiles(self) -> int:
        """The largest number of tiles of a row."""
        return 0 if (tiles := self._row_tiles) is None else int(tiles.max())

    @property
    def _row_tiles(self) -> np.ndarray | None:
        return self.plan.row_tiles if isinstance(self.plan, Windowed) else None

    def _place(self, epoch: int, at: int) -> int:
        """The number in the plan of row `at` of an epoch."""
        if self.seed is None:
            return at
        return permuted(at, self.plan.num_rows, derive(self.seed, "rows", epoch))

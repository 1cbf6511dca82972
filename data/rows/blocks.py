"""Blocks: runs of tokens that stay together, such as those of a picture, and the tiles that they need."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks [begin, end) of a source's tokens, in ascending order and apart from each other, with their `tiles`; each
    int64[blocks]."""

    begin: np.ndarray
    end: np.ndarray
    tiles: np.ndarray

    @functools.cached_property
    def _before(self) -> np.ndarray:
        """int64[blocks + 1]: tiles of all blocks before each."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.tiles, dtype=np.int64)])

    def within(self, begin: int, end: int) -> slice:
        """The blocks among tokens [begin, end), which cut none."""
        return slice(int(np.searchsorted(self.begin, begin)), int(np.searchsorted(self.begin, end)))

    def tiles_in(self, begin: int, end: int) -> int:
        """The tiles of tokens [begin, end)."""
        some = self.within(begin, end)
        return int(self._before[max(some.stop, some.start)] - self._before[some.start])

    def around(self, at: int) -> tuple[int, int] | None:
        """The block that a cut before token `at` would go through; None: it goes through none."""
        found = int(np.searchsorted(self.end, at, "right"))
        inside = found < self.begin.size and self.begin[found] < at
        return (int(self.begin[found]), int(self.end[found])) if inside else None

    def after(self, at: int) -> int:
        """`at`, or the end of the block around it."""
        around = self.around(at)
        return at if around is None else around[1]

    def ending(self, at: int) -> int:
        """Where the block begins that ends with the token before `at`; `at - 1` if none does."""
        found = int(np.searchsorted(self.end, at))
        ends = found < self.end.size and self.end[found] == at
        return int(self.begin[found]) if ends else at - 1

    def limit(self, begin: int, limit: int, tiles: int) -> int:
        """The largest index up to `limit` at which tokens from `begin` on can end: inside no block, with at most
        `tiles` tiles."""
        first = int(np.searchsorted(self.begin, begin))
        over = int(np.searchsorted(self._before, self._before[first] + tiles, "right")) - 1
        if over < self.begin.size:
            limit = min(limit, int(self.begin[over]))
        around = self.around(limit)
        return limit if around is None else around[0]


def _none() -> np.ndarray:
    return np.zeros(0, np.int64)


NO_BLOCKS = Blocks(_none(), _none(), _none())

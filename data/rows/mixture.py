"""Mixes sources: the source of each row of a stream is a pure function of the row's number."""

import bisect
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from maverick_jax.errors import InputError

MAX_BLOCK = 1 << 16


class Mixture(Protocol):
    def locate(self, row: int) -> tuple[int, int]:
        """The source of stream row `row`, and the row's number in that source."""
        ...

    def shares(self) -> list[float]:
        """The fraction of the stream that comes from each source; sums to 1."""
        ...

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows come from each source."""
        ...


class Weighted:
    """A stream of equal blocks. Each source has a fixed number of rows per block, evenly spaced.

    Shares are exact if the weights are fractions with a common denominator up to MAX_BLOCK, and are otherwise rounded
    to multiples of 1 / MAX_BLOCK.
    """

    def __init__(self, weights: dict[str, float]):
        """Raises InputError for a weight that is too small for even one row per block."""
        self._counts = np.array(_counts(weights))
        # row k of n is at (k + 1/2) / n of a block; ties go to the source that is named first
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in self._counts])
        sources = np.repeat(np.arange(self._counts.size), self._counts)
        ranks = np.concatenate([np.arange(n) for n in self._counts])
        order = np.argsort(places, kind="stable")
        self._source, self._rank = sources[order], ranks[order]

    @property
    def block(self) -> int:
        """Number of rows after which the pattern repeats."""
        return self._source.size

    def shares(self) -> list[float]:
        return (self._counts / self.block).tolist()

    def locate(self, row: int) -> tuple[int, int]:
        block, at = divmod(row, self.block)
        source = int(self._source[at])
        return source, block * int(self._counts[source]) + int(self._rank[at])

    def counts(self, rows: int) -> list[int]:
        blocks, rest = divmod(rows, self.block)
        part = np.bincount(self._source[:rest], minlength=self._counts.size)
        return (blocks * self._counts + part).tolist()


class Moving:
    """A mixture whose weights move in a straight line over its rows, in `PIECES` pieces of constant weights: those of
    their middles, in multiples of 1 / `STEPS` of all. After the last row it stays as it is there."""

    PIECES, STEPS = 64, 4096

    def __init__(self, begin: dict[str, float], end: dict[str, float], rows: int):
        self._begins = [piece * rows // self.PIECES for piece in range(self.PIECES)]
        self._rows, self._names = rows, list(begin)
        self._mixtures = [Weighted(self._weights(begin, end, (i + 0.5) / self.PIECES)) for i in range(self.PIECES)]
        lengths = np.diff([*self._begins, rows])
        drawn = [mixture.counts(int(n)) for mixture, n in zip(self._mixtures, lengths, strict=True)]
        self._before = np.concatenate([np.zeros((1, len(begin)), np.int64), np.cumsum(drawn, axis=0)])
        """int64 [pieces + 1, sources]: rows of each source before a piece."""

    def _weights(self, begin: dict[str, float], end: dict[str, float], at: float) -> dict[str, float]:
        here = {name: (1 - at) * begin[name] + at * end[name] for name in begin}
        return {name: float(max(1, round(self.STEPS * w / sum(here.values())))) for name, w in here.items()}

    def _piece(self, row: int) -> int:
        return bisect.bisect_right(self._begins, row) - 1

    def shares(self) -> list[float]:
        """Over all rows."""
        return (self._before[-1] / max(1, self._rows)).tolist()

    def locate(self, row: int) -> tuple[int, int]:
        piece = self._piece(row)
        source, at = self._mixtures[piece].locate(row - self._begins[piece])
        return source, int(self._before[piece][source]) + at

    def counts(self, rows: int) -> list[int]:
        piece = self._piece(rows)
        return (self._before[piece] + self._mixtures[piece].counts(rows - self._begins[piece])).tolist()


class Sequential:
    """Reads one source after the other, each row once, and then begins again; for evaluation."""

    def __init__(self, num_rows: Sequence[int]):
        self._ends = np.cumsum(num_rows)
        self._num_rows = list(num_rows)

    def shares(self) -> list[float]:
        return [rows / int(self._ends[-1]) for rows in self._num_rows]

    def locate(self, row: int) -> tuple[int, int]:
        epoch, at = divmod(row, int(self._ends[-1]))
        source = int(np.searchsorted(self._ends, at, "right"))
        first = int(self._ends[source]) - self._num_rows[source]
        return source, epoch * self._num_rows[source] + at - first

    def counts(self, rows: int) -> list[int]:
        epochs, rest = divmod(rows, int(self._ends[-1]))
        part = np.clip(rest - (self._ends - self._num_rows), 0, self._num_rows)
        return (epochs * np.array(self._num_rows) + part).tolist()


class Continued:
    """A mixture from its row `first` on, whose sources count their rows otherwise."""

    def __init__(self, mixture: Mixture, first: int, shifts: Sequence[int]):
        """shifts: what is added to the numbers of a source's rows, by source."""
        self._mixture, self._first, self._shifts = mixture, first, list(shifts)

    def shares(self) -> list[float]:
        return self._mixture.shares()

    def locate(self, row: int) -> tuple[int, int]:
        source, at = self._mixture.locate(self._first + row)
        return source, at + self._shifts[source]

    def counts(self, rows: int) -> list[int]:
        before, after = self._mixture.counts(self._first), self._mixture.counts(self._first + rows)
        return [high - low for low, high in zip(before, after, strict=True)]


def _counts(weights: dict[str, float]) -> list[int]:
    """Number of rows of each source in one block."""
    exact = [Fraction(str(weight)) for weight in weights.values()]
    shares = [weight / sum(exact) for weight in exact]
    block = int(np.lcm.reduce([s.denominator for s in shares], dtype=object))
    if block <= MAX_BLOCK:
        return [int(share * block) for share in shares]
    # the largest remainder method: whole parts first, then the rest of the block to the largest fractions
    counts = [int(share * MAX_BLOCK) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i] * MAX_BLOCK)
    for i in by_remainder[: MAX_BLOCK - sum(counts)]:
        counts[i] += 1
    for name, count in zip(weights, counts, strict=True):
        if count == 0:
            raise InputError(f"data.sources.{name}.weight: {weights[name]:g} is under 1/{MAX_BLOCK} of all weights: "
                             "the source would never be read")  # fmt: skip
    return counts

"""Figures: a mean or a share over examples with its number and its 95% interval; and paired tests.

Shares have Wilson's interval, other means Student's; scores between 0 and 1 without any spread have Wilson's, which is
wider than needed. Where examples share a source, the interval counts the spread
between sources (cluster-robust, with the correction G / (G - 1) for G sources; arXiv 2411.00640)."""

import collections
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

Z = 1.959963984540054
"""The 97.5% point of the normal distribution."""


class Figure(NamedTuple):
    """A mean over `n` examples."""

    value: float
    n: int
    low: float
    high: float
    """Ends of the 95% interval."""
    clusters: int | None = None
    """Number of sources that the interval counts; None: every example is a source of its own."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share among `n` trials; a number that is not whole is an effective sample size."""
    center = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return (0.0 if share == 0 else max(0.0, center - half)), (1.0 if share == 1 else min(1.0, center + half))


def figure(scores: Sequence[float], groups: Sequence[Hashable] | None = None) -> Figure:
    """The mean of scores. `groups`: the source of each; None: all differ. Raises ValueError without a score."""
    if not scores:
        raise ValueError("no scores")
    found, n = np.asarray(scores, np.float64), len(scores)
    mean = float(found.mean())
    sums = _cluster_sums(found - mean, groups)
    clusters = len(sums) if len(sums) < n else None
    error = math.sqrt(float(np.sum(sums**2)) * len(sums) / (len(sums) - 1)) / n if len(sums) > 1 else math.inf
    if np.isin(found, (0.0, 1.0)).all():
        effective = float(n) if clusters is None else float(len(sums))
        if clusters is not None and 0 < error < math.inf:
            effective = min(float(n), mean * (1 - mean) / error**2)
        return Figure(mean, n, *wilson(mean, effective), clusters)
    if error in (0.0, math.inf) and found.min() >= 0 and found.max() <= 1:
        return Figure(mean, n, *wilson(mean, len(sums)), clusters)
    if error == math.inf:
        return Figure(mean, n, -math.inf, math.inf, clusters)
    half = float(special.stdtrit(len(sums) - 1, 0.975)) * error
    return Figure(mean, n, mean - half, mean + half, clusters)


def scaled(one: Figure, factor: float, shift: float) -> Figure:
    """The figure of scores times `factor` (above 0) plus `shift`."""
    value, low, high = (x * factor + shift for x in (one.value, one.low, one.high))
    return one._replace(value=value, low=low, high=high)


def _cluster_sums(values: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """The sum of each source's values, in order of first appearance."""
    if groups is None:
        return values
    sums: dict[Hashable, float] = collections.defaultdict(float)
    for group, value in zip(groups, values.tolist(), strict=True):
        sums[group] += value
    return np.array(list(sums.values()))


# ---- two models on the same examples ---------------------------------------------------------------------------------

RESAMPLES = 10_000


class Paired(NamedTuple):
    """Two models on the same examples: the second's mean minus the first's."""

    difference: float
    n: int
    low: float
    high: float
    """95% interval of the difference: percentiles of a bootstrap over sources."""
    p_value: float
    test: str
    """`mcnemar`: exact, for shares without shared sources; `t`: of the differences, summed by source."""
    first_only: int
    second_only: int
    """Examples where the first model has the higher score, and where the second has."""

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def paired(
    first: Sequence[float], second: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Paired:
    """Compares scores of two models, example by example. Raises ValueError without a score."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.size == 0 or a.shape != b.shape:
        raise ValueError(f"{a.size} and {b.size} scores; expected equally many, at least one")
    differences = b - a
    sums, sizes = _cluster_sums(differences, groups), _cluster_sums(np.ones_like(a), groups)
    lost, won = int((differences < 0).sum()), int((differences > 0).sum())
    if len(sums) == a.size and np.isin([a, b], (0.0, 1.0)).all():
        test, p_value = "mcnemar", mcnemar(lost, won)
    else:
        test, p_value = "t", paired_t(differences, groups)
    low, high = _bootstrap(sums, sizes, seed)
    return Paired(float(differences.mean()), a.size, low, high, p_value, test, lost, won)


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided exact p-value for discordant pairs: that of a fair coin thrown `first_only + second_only` times."""
    n, least = first_only + second_only, min(first_only, second_only)
    if first_only == second_only:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(least, n, 0.5)))


def paired_t(differences: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> float:
    """Two-sided p-value of a t-test that the mean difference is 0, cluster-robust with `groups`. 1 if there is only one
    source; if all differences are equal, 1 for a mean of 0 and else 0."""
    found = np.asarray(differences, np.float64)
    mean = float(found.mean())
    sums = _cluster_sums(found - mean, groups)
    if len(sums) < 2:
        return 1.0
    error = math.sqrt(float(np.sum(sums**2)) * len(sums) / (len(sums) - 1)) / found.size
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(len(sums) - 1, -abs(mean) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's step-down rule; in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    draw = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for begin in range(0, RESAMPLES, 500):  # bounds the memory
        chosen = draw.integers(0, len(sums), (500, len(sums)))
        means[begin : begin + 500] = sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)

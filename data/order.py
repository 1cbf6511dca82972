"""Random orders that are pure functions of a seed. They do not depend on the versions of libraries."""

import hashlib

import numpy as np
from grain.experimental import index_shuffle

MAX_ROWS = 2**32 - 1
"""Grain's permutation counts in 32 bits."""


def derive(seed: int, *parts: object) -> int:
    """A 64-bit seed for the purpose named by `parts`. Different parts give independent seeds."""
    text = "\0".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(values: np.ndarray, seed: int) -> np.ndarray:
    """Hashes `values` element by element, uint64: SplitMix64 (Steele, Lea, Flood 2014) of value and seed."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive(seed, "mix"))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(count: int, seed: int) -> np.ndarray:
    """int64[count]: the numbers below `count` in random order."""
    return np.argsort(mix(np.arange(count, dtype=np.uint64), seed), kind="stable")


def permuted(index: int, count: int, seed: int) -> int:
    """The image of `index` under a random permutation of the numbers below `count`, without computing all of it."""
    return index_shuffle(index, max_index=count - 1, seed=seed % 2**32, rounds=4) if count > 1 else 0

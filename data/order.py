"""Random orders that are pure functions of a seed and stay the same in every version of every library."""

import hashlib

import numpy as np
from grain.experimental import index_shuffle

MAX_ROWS = 2**32 - 1
"""Grain's permutation counts in 32 bits."""


def derive(seed: int, *parts: object) -> int:
    """A 64-bit seed for the purpose that `parts` name. Different parts give independent seeds."""
    text = "\0".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix(values: np.ndarray, seed: int) -> np.ndarray:
    """uint64 `values` hashed one by one: SplitMix64 (Steele, Lea, Flood 2014) of value and seed."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derive(seed, "mix"))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(count: int, seed: int) -> np.ndarray:
    """int64[count]: the numbers below `count` in a random order, all in memory."""
    return np.argsort(mix(np.arange(count, dtype=np.uint64), seed), kind="stable")


def permuted(index: int, count: int, seed: int) -> int:
    """Where a random permutation of the numbers below `count` sends `index`, without making the permutation."""
    return index_shuffle(index, max_index=count - 1, seed=seed % 2**32, rounds=4) if count > 1 else 0

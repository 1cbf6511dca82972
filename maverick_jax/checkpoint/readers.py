"""Our parameters as readers: objects with a shape that give any part of themselves as NumPy, from disk or from devices.

A reader is called with a slice (of step 1) per dimension and a dtype. What is larger than memory is read part by part.
"""

import functools
import math
import pathlib
import threading
from collections.abc import Mapping
from typing import Protocol

import jax
import numpy as np
import tensorstore

from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint.checksum import RunningChecksum, added, require_supported
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.errors import InputError

_CACHE_BYTES = 128 * 2**20
"""Decoded chunks that are kept: neighbouring parts often share one."""


class Reader(Protocol):
    """One of our parameters, readable in parts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        """The part `index`, converted to `dtype` (rounded to nearest even)."""
        ...


class StoredArray:
    """An array of one of our checkpoints. Every part it gives counts towards its checksum."""

    def __init__(self, path: pathlib.Path, name: str, entry: dict, cache: tensorstore.Context):
        """`path` of the checkpoint; `entry`: what its metadata says of the array. Raises InputError if damaged."""
        self._name, self._expected = f"{path}: {name}", entry["checksum"]
        try:
            require_supported(name, entry["dtype"])
            self._store = contents.open_array(path, name, entry, cache)
        except Damaged as damage:
            raise InputError(f"{self._name}: {damage}") from damage
        self._seen, self._elements, self._lock = added(()), 0, threading.Lock()
        self.shape = tuple(entry["shape"])
        self.chunks = tuple(self._store.chunk_layout.read_chunk.shape or self.shape)
        """Shape of what is read at once from the disk."""

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        try:
            with contents.named_damage():
                part = self._store[index].read().result()
        except Damaged as damage:
            raise InputError(f"{self._name}: {damage}") from damage
        checksum = RunningChecksum()
        checksum.add(tuple(s.start or 0 for s in index), part)
        with self._lock:  # parts are read by several threads
            self._seen = added((self._seen, checksum.hexadecimal()))
            self._elements += part.size
        return part.astype(dtype, copy=False)

    def require_undamaged(self) -> None:
        """Raises InputError if what was read differs from what was saved. Nothing may have been read twice."""
        if self._elements not in (0, math.prod(self.shape)):
            raise ValueError(f"{self._name}: {self._elements} elements were read of an array of {self.shape}")
        if self._elements and self._seen != self._expected:
            hint = "`maverick doctor` tells which checkpoints are whole"
            raise InputError(f"{self._name} differs from what was saved; {hint}")


def open_checkpoint(path: pathlib.Path, table: dict[str, dict], prefix: str) -> dict[str, StoredArray]:
    """The arrays of the checkpoint at `path` whose name begins with `prefix`, by the rest of their name.

    `table`: name -> {shape, dtype, checksum}, as in the checkpoint's metadata. Raises InputError for a damaged one.
    """
    cache = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    names = [name for name in table if name.startswith(prefix)]
    return {name.removeprefix(prefix): StoredArray(path, name, table[name], cache) for name in names}


def require_undamaged(readers: Mapping[str, Reader]) -> None:
    """Raises InputError if one of `readers` is (made) of a checkpoint and gave something else than what was saved."""
    for reader in readers.values():
        if (check := getattr(reader, "require_undamaged", None)) is not None:
            check()


class LiveArray:
    """A JAX array on any mesh of this process: parts are put together from the devices that hold them."""

    def __init__(self, name: str, array: jax.Array):
        if not array.is_fully_addressable:
            raise InputError(f"{name}: is spread over several processes; export from a single process")
        self._parts = {}
        for shard in array.addressable_shards:  # several devices may hold the same part
            self._parts.setdefault(
                tuple(s.indices(n)[:2] for s, n in zip(shard.index, array.shape, strict=True)), shard
            )
        self._dtype = array.dtype
        self.shape = array.shape

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        wanted = [s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in wanted], dtype)
        for held, shard in self._parts.items():
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, held, strict=True)]
            if all(start < stop for start, stop in common):
                there = tuple(slice(a - base, b - base) for (a, b), (base, _) in zip(common, wanted, strict=True))
                here = tuple(slice(a - base, b - base) for (a, b), (base, _) in zip(common, held, strict=True))
                out[there] = _on_host(shard.data, here).astype(dtype, copy=False)
        return out


def _on_host(data: jax.Array, index: tuple[slice, ...]) -> np.ndarray:
    if next(iter(data.devices())).platform == "cpu":
        return np.asarray(data)[index]  # a view
    sizes = tuple(s.stop - s.start for s in index)
    return np.asarray(_slice(data, tuple(np.int32(s.start) for s in index), sizes))


@functools.partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, start: tuple[jax.Array, ...], sizes: tuple[int, ...]) -> jax.Array:
    """One program for all parts of the same size."""
    return jax.lax.dynamic_slice(data, start, sizes)

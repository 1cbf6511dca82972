"""Readers: objects with a shape that return any part of a parameter as a NumPy array, from disk or from devices.

A reader is called with a slice (of step 1) per dimension and a dtype. Arrays larger than memory are read in parts.
"""

import dataclasses
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
"""Size of the cache of decoded chunks, since adjacent parts often share a chunk."""


Index = tuple[slice, ...]


class Reader(Protocol):
    """A parameter of our model that can be read in parts."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        """The part `index`, converted to `dtype` (rounded to nearest even)."""
        ...


def order_of(reader: Reader) -> tuple[int, ...]:
    """Axes of the reader's source from slowest to fastest in memory order."""
    return getattr(reader, "order", tuple(range(len(reader.shape))))


@dataclasses.dataclass(frozen=True)
class LayerSlice:
    """One layer of a parameter that stacks layers along its first axis."""

    reader: Reader
    at: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.reader.shape[1:]

    @property
    def order(self) -> tuple[int, ...]:
        return tuple(axis - 1 for axis in order_of(self.reader) if axis)

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        return self.reader((slice(self.at, self.at + 1), *index), dtype)[0]


class StoredArray:
    """Reader of an array in one of our checkpoints. Every part read is added to its checksum."""

    def __init__(self, path: pathlib.Path, name: str, entry: dict, cache: tensorstore.Context):
        """`path`: the checkpoint's folder; `entry`: the array's metadata. Raises InputError if the array is damaged."""
        self._name, self._expected = f"{path}: {name}", entry["checksum"]
        try:
            require_supported(name, entry["dtype"])
            self._store = contents.open_array(path, name, entry, cache)
        except Damaged as damage:
            raise InputError(f"{self._name}: {damage}") from damage
        self._seen, self._elements, self._lock = added(()), 0, threading.Lock()
        self.shape = tuple(entry["shape"])
        self.chunks = tuple(self._store.chunk_layout.read_chunk.shape or self.shape)
        """Shape of the chunks in which the array is stored."""

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        try:
            with contents.named_damage():
                part = self._store[index].read().result()
        except Damaged as damage:
            raise InputError(f"{self._name}: {damage}") from damage
        checksum = RunningChecksum()
        checksum.add(tuple(s.start or 0 for s in index), part)
        with self._lock:  # several threads read parts
            self._seen = added((self._seen, checksum.hexadecimal()))
            self._elements += part.size
        return part.astype(dtype, copy=False)

    def require_undamaged(self) -> None:
        """Raises InputError if the values read do not match the stored checksum. Each element must have been read
        exactly once, or none at all."""
        if self._elements not in (0, math.prod(self.shape)):
            raise ValueError(f"{self._name}: {self._elements} elements were read of an array of {self.shape}")
        if self._elements and self._seen != self._expected:
            hint = "`maverick doctor` shows which checkpoints are intact"
            raise InputError(f"{self._name} differs from what was saved; {hint}")


def open_checkpoint(path: pathlib.Path, table: dict[str, dict], prefix: str) -> dict[str, StoredArray]:
    """Readers of the arrays of the checkpoint at `path` whose names begin with `prefix`, keyed by the rest of the name.

    `table`: name -> {shape, dtype, checksum}, as in the checkpoint's metadata. Raises InputError for a damaged array.
    """
    cache = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    names = [name for name in table if name.startswith(prefix)]
    return {name.removeprefix(prefix): StoredArray(path, name, table[name], cache) for name in names}


def require_undamaged(readers: Mapping[str, Reader]) -> None:
    """Raises InputError if a reader of a checkpoint (or one built on it) read values that differ from those saved."""
    for reader in readers.values():
        if (check := getattr(reader, "require_undamaged", None)) is not None:
            check()


class LiveArray:
    """Reader of a JAX array on any mesh of this process; parts are assembled from the devices' shards."""

    def __init__(self, name: str, array: jax.Array):
        if not array.is_fully_addressable:
            raise InputError(f"{name}: is sharded over several processes; export from a single process")
        self._parts = {}
        for shard in array.addressable_shards:  # several devices may hold the same shard
            self._parts.setdefault(
                tuple(s.indices(n)[:2] for s, n in zip(shard.index, array.shape, strict=True)), shard
            )
        self._dtype = array.dtype
        self.shape = array.shape

    def __call__(self, index: Index, dtype: np.dtype) -> np.ndarray:
        wanted = [s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True)]
        out = np.empty([stop - start for start, stop in wanted], dtype)
        for held, shard in self._parts.items():
            common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, held, strict=True)]
            if all(start < stop for start, stop in common):
                there = tuple(slice(a - base, b - base) for (a, b), (base, _) in zip(common, wanted, strict=True))
                here = tuple(slice(a - base, b - base) for (a, b), (base, _) in zip(common, held, strict=True))
                out[there] = _on_host(shard.data, here).astype(dtype, copy=False)
        return out


def _on_host(data: jax.Array, index: Index) -> np.ndarray:
    if next(iter(data.devices())).platform == "cpu":
        return np.asarray(data)[index]  # a view
    sizes = tuple(s.stop - s.start for s in index)
    return np.asarray(_slice(data, tuple(np.int32(s.start) for s in index), sizes))


@functools.partial(jax.jit, static_argnums=2)
def _slice(data: jax.Array, start: tuple[jax.Array, ...], sizes: tuple[int, ...]) -> jax.Array:
    """A slice whose start is dynamic, so that all parts of one size share a compiled program."""
    return jax.lax.dynamic_slice(data, start, sizes)

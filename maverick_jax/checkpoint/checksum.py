"""A 64-bit checksum of an array that does not depend on how the array is sharded.

Each element's bits are mixed with its position in the whole array, and two different mixes are summed modulo 2^32.
Integer sums do not depend on order, so every sharding on every mesh gives the same value. Each device sums its own
shard and the host adds the devices' sums, so no array leaves its device and no communication can interfere with the
training step's. One flipped bit always changes both sums.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from maverick_jax.errors import InputError

# One odd constant per dimension: a position is sum(index_d * _STRIDES[d]) mod 2^32. The constants are unrelated to each
# other and to the shape; a row-major position would repeat in arrays of more than 2^32 elements.
_STRIDES = tuple(np.uint32(s) for s in (
    0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09,
))  # fmt: skip
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "bfloat16", "float32")


def checksums(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """Name -> 16 hexadecimal digits, computed on the devices that hold the array. Every process of the job must call
    it. Raises InputError for a dtype that cannot be stored.
    """
    for name, array in arrays.items():
        require_supported(name, array.dtype)
    sums = [_sums_of_parts(array) for array in arrays.values()]
    # A replicated shard counts once over all processes of the job.
    mine = [[shard.data for shard in x.addressable_shards if shard.replica_id == 0] for x in sums]
    totals = [sum(parts, np.zeros((1, 2), np.uint32))[0] for parts in jax.device_get(mine)]
    if jax.process_count() > 1 and totals:
        totals = multihost_utils.process_allgather(np.stack(totals)).sum(0, dtype=np.uint32)
    return {name: _hexadecimal(total) for name, total in zip(arrays, totals, strict=True)}


def sums_by_device(arrays: dict[str, jax.Array]) -> dict[int, np.ndarray]:
    """uint32[n, 2] of each device of the job, by its id: the sums of its own shards of the n arrays, which lie on one
    mesh. Devices that hold the same shard have the same sums, unless a bit differs. Every process must call it."""
    found: dict[int, list[np.ndarray]] = {}
    shards = [_sums_of_parts(array).addressable_shards for array in arrays.values()]
    for parts in jax.device_get([{shard.device.id: shard.data for shard in of_array} for of_array in shards]):
        for device, part in parts.items():
            found.setdefault(device, []).append(part[0])
    mine = {device: np.stack(parts) for device, parts in found.items()}
    if jax.process_count() == 1:
        return mine
    ids, sums = multihost_utils.process_allgather((np.array(list(mine), np.int32), np.stack(list(mine.values()))))
    return dict(zip(ids.reshape(-1).tolist(), sums.reshape(-1, *sums.shape[2:]), strict=True))


def checksum_of_blocks(blocks: Iterable[tuple[tuple[int, ...], np.ndarray]]) -> str:
    """The checksum from NumPy blocks that make up the array, each with the index of its first element in the array."""
    running = RunningChecksum()
    for start, block in blocks:
        running.add(start, block)
    return running.hexadecimal()


def added(parts: Iterable[str]) -> str:
    """The checksum of an array from the checksums of its blocks, each computed at the block's position."""
    totals = sum(
        (np.array([int(part[:8], 16), int(part[8:], 16)], np.uint64) for part in parts), np.zeros(2, np.uint64)
    )
    return _hexadecimal(totals.astype(np.uint32))


class RunningChecksum:
    """The checksum of an array from its blocks, added in any order. It is computed on the host."""

    def __init__(self):
        self.elements = 0
        """Number of elements added. Each element must be added exactly once."""
        self._totals = np.zeros(2, np.uint32)

    def add(self, start: tuple[int, ...], block: np.ndarray) -> None:
        """Add a block; `start` is the index of its first element in the whole array."""
        block = np.asarray(block, order="C")
        rows, columns = _positions(block.shape, start)
        bits = block.view(f"uint{8 * block.dtype.itemsize}").reshape(len(rows), len(columns))
        device = host()
        if device is not None and block.nbytes >= _WORTH_COMPILING:
            self._totals += np.asarray(_sums_of_rows(*jax.device_put((bits, rows, columns), device)))
        else:
            height = max(1, _AT_A_TIME // max(1, len(columns)))
            for r in range(0, len(rows), height):
                here = slice(r, r + height)
                self._totals += _host_sums(bits[here], rows[here, None] + columns[None])
        self.elements += block.size

    def hexadecimal(self) -> str:
        return _hexadecimal(self._totals)


_LEAST_COLUMNS = 1 << 12
_AT_A_TIME = 1 << 16
"""Number of elements that NumPy processes at a time, so that they fit a core's cache."""
_WORTH_COMPILING = 2**20
"""Blocks of at least this many bytes use a compiled program, which is seven times as fast as NumPy."""


@functools.cache
def host():
    """The CPU as a JAX device; None if JAX runs without its CPU backend."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _positions(shape: tuple[int, ...], start: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """uint32[R] and uint32[C] for a block viewed as R rows of C columns: element [r, c] has position
    rows[r] + columns[c].

    The columns are the last axes and part of the axis before them, at least _LEAST_COLUMNS if the shape allows.
    """
    split, width = len(shape), 1
    while split and width < _LEAST_COLUMNS:
        split -= 1
        width *= shape[split]
    starts = [np.uint32(first & 0xFFFFFFFF) for first in start]
    axes = [(np.arange(n, dtype=np.uint32) + s) * k for n, s, k in zip(shape, starts, _STRIDES, strict=False)]
    if not shape or not width:
        return _sum_of_axes(axes[:split]), _sum_of_axes(axes[split:])
    n, inner = shape[split], width // shape[split]
    part = next(d for d in range(min(n, math.ceil(_LEAST_COLUMNS / inner)), n + 1) if n % d == 0)
    inside = np.arange(part, dtype=np.uint32) * _STRIDES[split]
    return _sum_of_axes([*axes[:split], axes[split][::part]]), _sum_of_axes([inside, *axes[split + 1 :]])


def _sum_of_axes(positions: list[np.ndarray]) -> np.ndarray:
    """uint32[n]: the sums of one value from each of `positions`, in row-major order."""
    total = np.zeros(1, np.uint32)
    for axis in positions:
        total = (total[:, None] + axis[None]).reshape(-1)
    return total


def _host_sums(bits: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Sums of `_mixes`, in as few passes over memory as NumPy allows. Overwrites `position`."""
    h = bits ^ position
    shifted = np.empty_like(h)
    for bits_down, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        np.right_shift(h, np.uint32(bits_down), out=shifted)
        h ^= shifted
        if factor:
            h *= np.uint32(factor)
    position *= np.uint32(2)
    position += np.uint32(1)
    position *= h
    return np.stack([h.sum(dtype=np.uint32), position.sum(dtype=np.uint32)])


@jax.jit
def _sums_of_rows(bits: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sums of `_mixes` in one pass, row by row, without temporaries of the block's size."""

    def add(sums, row):
        values, position = row
        mixed = _mixes(values.astype(jnp.uint32), columns + position)
        return tuple(total + h for total, h in zip(sums, mixed, strict=True)), None

    sums, _ = jax.lax.scan(add, (jnp.zeros_like(columns),) * 2, (bits, rows))
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in sums])


def require_supported(name: str, dtype) -> None:
    """Raises InputError unless arrays of `dtype` can be stored and verified."""
    if str(dtype) not in _DTYPES:
        raise InputError(f"array {name!r} is {dtype}; a checkpoint supports {', '.join(_DTYPES)}")


def _sums_of_parts(array: jax.Array) -> jax.Array:
    """uint32[n, 2]: one row per shard of the array, on the device that holds the shard."""
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding):
        return _device_sums(array)[None]
    with jax.set_mesh(sharding.mesh):  # pyright: ignore[reportArgumentType]
        return _sums_on_mesh(array, sharding.mesh, sharding.spec)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _sums_on_mesh(array: jax.Array, mesh: Mesh | AbstractMesh, spec: PartitionSpec) -> jax.Array:
    axes = [(entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec]

    def part(x):
        split = [*axes, *[()] * (x.ndim - len(axes))]
        first = [jnp.uint32(n) * _index(names) for n, names in zip(x.shape, split, strict=True)]
        return _sums(x, tuple(first))[None]

    rows = PartitionSpec(tuple(name for names in axes for name in names) or None)
    return jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=rows)(array)


def _index(names: tuple[str, ...]) -> jax.Array:
    """Index of this device's shard along a dimension that is sharded over the mesh axes `names`."""
    return jax.lax.axis_index(names).astype(jnp.uint32) if names else jnp.uint32(0)


def _sums(x: jax.Array, start: tuple[jax.Array, ...] = ()) -> jax.Array:
    """uint32[2] of an array on one device; `start` is the index of its first element in the whole array."""
    x = jnp.asarray(x)
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        position += (index + start[axis] if start else index) * _STRIDES[axis]
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in _mixes(bits, position)])


_device_sums = jax.jit(_sums)


def _mixes(bits, position):
    """Two functions of (bits, position), all uint32, each a bijection of `bits`."""
    h = bits ^ position  # followed by the finalizer of MurmurHash3 (public domain)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    return h, h * (position * np.uint32(2) + np.uint32(1))


def _hexadecimal(pair) -> str:
    return f"{int(pair[0]):08x}{int(pair[1]):08x}"

"""A 64-bit checksum of an array that does not depend on how the array is split over devices.

Each element's bits are mixed with its position in the whole array; two different mixes are summed modulo 2^32. Sums
of integers have no order, so every sharding on every mesh gives the same value, and the reduction runs where the
parts are: nothing but two numbers per array reaches the host. One flipped bit always changes both sums.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.errors import InputError

# One odd constant per dimension: a position is sum(index_d * _STRIDES[d]) mod 2^32. Constants unrelated to each other
# and to the shape keep positions apart in arrays of more than 2^32 elements, where row-major order would repeat.
_STRIDES = tuple(np.uint32(s) for s in (
    0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1, 0xD3A2646D, 0xFD7046C5, 0xB55A4F09,
))  # fmt: skip
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "bfloat16", "float32")


def checksums(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """16 hexadecimal digits per array, computed on the devices that hold it. Every process of the job must call it.

    Raises InputError for a dtype that cannot be stored.
    """
    for name, array in arrays.items():
        require_supported(name, array.dtype)
    sums = {name: _device_sums(array) for name, array in arrays.items()}
    return {name: _hexadecimal(pair) for name, pair in jax.device_get(sums).items()}


def checksum_of_blocks(blocks: Iterable[tuple[tuple[int, ...], np.ndarray]]) -> str:
    """The same value from NumPy blocks, each with the index of its first element in the whole array."""
    total = np.zeros(2, np.uint32)
    for start, block in blocks:
        total += np.asarray(_device_sums(block, tuple(np.uint32(first & 0xFFFFFFFF) for first in start)))
    return _hexadecimal(total)


def require_supported(name: str, dtype) -> None:
    """Raises InputError unless arrays of `dtype` can be stored and verified."""
    if str(dtype) not in _DTYPES:
        raise InputError(f"array {name!r} is {dtype}; a checkpoint holds {', '.join(_DTYPES)}")


@jax.jit
def _device_sums(x: jax.Array, start: tuple[jax.Array, ...] = ()) -> jax.Array:
    """uint32[2] of an array of any shape, dtype and sharding; `start` is the index of its first element."""
    x = jnp.asarray(x)
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
    sharding = jax.typeof(x).sharding
    placed = {} if sharding.mesh.empty else {"out_sharding": sharding}
    position = jnp.zeros_like(bits)
    for axis in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis, **placed)
        position += (index + start[axis] if start else index) * _STRIDES[axis]
    return jnp.stack([jnp.sum(part, dtype=jnp.uint32) for part in _mixes(bits, position)])


def _mixes(bits, position):
    """Two functions of (bits, position), all uint32, each a bijection of `bits`."""
    h = bits ^ position  # what follows is the finaliser of MurmurHash3 (public domain)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    return h, h * (position * np.uint32(2) + np.uint32(1))


def _hexadecimal(pair) -> str:
    return f"{int(pair[0]):08x}{int(pair[1]):08x}"

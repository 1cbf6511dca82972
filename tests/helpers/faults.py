"""Faults that tests inject into arrays."""

import jax
import numpy as np


def with_flipped_bit(array: jax.Array, device: int, bit: int) -> jax.Array:
    """The array with a flipped bit in the first element of one device's buffer; the other devices' stay as they are."""
    buffers = []
    for shard in array.addressable_shards:
        buffer = np.array(shard.data)
        if shard.device.id == device:
            bits = buffer.view(f"uint{8 * buffer.dtype.itemsize}").reshape(-1)
            bits[0] ^= np.asarray(1 << bit, bits.dtype)
        buffers.append(jax.device_put(buffer, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, buffers)

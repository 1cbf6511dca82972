"""Sums over parts of rows, such as the log-probability of each side of a pair."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.sharding import dimensions


def segment_sums_reference(values, numbers, count: int):
    """The slow twin, over a table of which token is in which part. Arguments and result as `segment_sums`."""
    inside = numbers[:, :, None] == jnp.arange(count, dtype=numbers.dtype)[None, None, :]
    return jnp.sum(jnp.where(inside, values[..., None].astype(jnp.float32), 0), axis=-2)


def segment_sums(values: jax.Array, numbers: jax.Array, count: int) -> jax.Array:
    """The sum of each row's `values` [B, T] over the tokens of each part, float32[B, count], split like the rows.
    `numbers` int32[B, T]: the part that a token is in, from 0; a token of any other number is in none. Devices that
    share rows add up what each has."""
    spec = jax.typeof(values).sharding.spec
    rows, shared = dimensions(spec, 2)

    def local(values, numbers):
        add = lambda x, at: jnp.zeros_like(x, shape=count).at[jnp.where(at < 0, count, at)].add(x, mode="drop")
        return lax.psum(jax.vmap(add)(values, numbers), shared)

    numbers = reshard(numbers, spec)
    out = PartitionSpec(rows or None, None)
    return jax.shard_map(local, in_specs=spec, out_specs=out)(values.astype(jnp.float32), numbers)


def at_segments_reference(sums, numbers):
    """The slow twin, over a table of which token is in which part. Arguments and result as `at_segments`."""
    inside = numbers[:, :, None] == jnp.arange(sums.shape[1], dtype=numbers.dtype)[None, None, :]
    return jnp.sum(jnp.where(inside, sums[:, None, :], 0), axis=-1)


def at_segments(sums: jax.Array, numbers: jax.Array) -> jax.Array:
    """The number `sums` [B, count] of the part that each token is in, float32[B, T], split like `numbers` int32[B, T];
    0 for a token of no part."""
    spec = jax.typeof(numbers).sharding.spec
    rows, _ = dimensions(spec, 2)

    def local(sums, numbers):
        taken = jnp.take_along_axis(sums, jnp.maximum(numbers, 0), axis=1)
        return jnp.where(numbers >= 0, taken, 0)

    parts = PartitionSpec(rows or None, None)
    return jax.shard_map(local, in_specs=(parts, spec), out_specs=spec)(reshard(sums, parts), numbers)

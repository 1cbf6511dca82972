"""Slots of a batch that devices share: takes one slot's entries to all devices, and puts entries into one slot.

An array [B, ...] has one entry per slot, and each device along the batch axes holds some of them.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maverick_jax.sharding import ShardingRules, axes_tuple


def local_slot(slot: jax.Array, count: int, axes: tuple[str, ...]) -> jax.Array:
    """Inside `shard_map`: the index of `slot` among the `count` of this device; `count` for a slot of others."""
    at = slot - lax.axis_index(axes) * count if axes else slot
    return jnp.where((at >= 0) & (at < count), at, count)


def take_slot(x: jax.Array, slot: jax.Array, rules: ShardingRules, shape: tuple[int, ...] | None = None) -> jax.Array:
    """The entry [...] of x [B, ...] at `slot` int32[], the same on all devices along the batch axes. `shape`: that of
    its first part, None: all of it."""
    axes, part = axes_tuple(rules.batch), _part(shape or x.shape[1:])

    def local(x, slot):
        own = x.at[(local_slot(slot, x.shape[0], axes), *part)].get(mode="fill", fill_value=0)
        return lax.psum(own, axes) if axes else own

    spec = jax.typeof(x).sharding.spec
    return jax.shard_map(local, in_specs=(spec, PartitionSpec()), out_specs=PartitionSpec(*spec[1:]))(x, slot)


def put_slot(x: jax.Array, entry: jax.Array, slot: jax.Array, rules: ShardingRules) -> jax.Array:
    """x [B, ...] with `entry`, or a first part of one, at `slot` int32[]; unchanged if there is no such slot."""
    axes, part = axes_tuple(rules.batch), _part(entry.shape)
    local = lambda x, entry, slot: x.at[(local_slot(slot, x.shape[0], axes), *part)].set(entry, mode="drop")
    spec = jax.typeof(x).sharding.spec
    specs = (spec, PartitionSpec(*spec[1:]), PartitionSpec())
    return jax.shard_map(local, in_specs=specs, out_specs=spec)(x, entry, slot)


def _part(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The split axis of heads is whole on every device, whatever its length there."""
    return tuple(slice(None) if i == 0 else slice(0, n) for i, n in enumerate(shape))

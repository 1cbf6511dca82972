"""Brings arrays [B, T, ...] from the order of rows to that of the devices that share them, and back."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from maverick_jax.row_split import RowSplit
from maverick_jax.sharding import ShardingRules


def row_split(length: int, rules: ShardingRules) -> RowSplit:
    """That of rows of `length` places on the mesh in use."""
    return RowSplit.of(length, rules, jax.sharding.get_abstract_mesh().shape)


def split_rows(x: jax.Array, rules: ShardingRules) -> jax.Array:
    """x [B, T, ...] in the order of rows, divided among devices by the axes `batch` and `length`."""
    split, rest = row_split(x.shape[1], rules), _trailing(x)
    if split.ways == 1:
        return x
    return reshard(split.split(reshard(x, rules("batch", None, *rest)), 1), rules("batch", "length", *rest))


def whole_rows(x: jax.Array, rules: ShardingRules) -> jax.Array:
    """The inverse of `split_rows`: every device has the rows of its sequences whole."""
    split, rest = row_split(x.shape[1], rules), _trailing(x)
    return split.whole(reshard(x, rules("batch", None, *rest)), 1)


def places(length: int, rules: ShardingRules) -> jax.Array:
    """int32[1, T]: the place in its row of every element of an array that is split by the axis `length`."""
    split = row_split(length, rules)
    if split.ways == 1:
        return jnp.arange(length, dtype=jnp.int32)[None, :]
    return reshard(jnp.asarray(split.places)[None, :], PartitionSpec(None, rules.length))


def earlier(x: jax.Array, rules: ShardingRules) -> jax.Array:
    """x [B, T, ...] in the order of devices -> at each place what x has at the place before it in its row; zeros at the
    first. Devices that share a row gather x."""
    whole = whole_rows(x, rules)
    moved = jnp.concatenate([jnp.zeros_like(whole[:, :1]), whole[:, :-1]], axis=1)
    return split_rows(moved, rules)


def _trailing(x: jax.Array) -> tuple[None, ...]:
    return (None,) * (x.ndim - 2)

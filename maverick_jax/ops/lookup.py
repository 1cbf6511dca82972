"""Rows of a table by token. The gradient of a row is summed over the row's tokens in float32, whatever the dtypes: a
frequent token adds up thousands of terms."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def lookup(out: PartitionSpec, dtype: str, table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows [B, T, D] in `dtype`, sharded by `out`, of table [V, D] at tokens int32[B, T]."""
    return table.at[tokens].get(out_sharding=out).astype(dtype)


def _forward(out, dtype, table, tokens):
    return lookup(out, dtype, table, tokens), (table, tokens)


def _backward(out, dtype, saved, dy):
    table, tokens = saved
    like = jnp.zeros_like(table, dtype=jnp.float32)
    _, transpose = jax.vjp(lambda table: table.at[tokens].get(out_sharding=out), like)
    (dtable,) = transpose(dy.astype(jnp.float32))
    return dtable.astype(table.dtype), None


lookup.defvjp(_forward, _backward)

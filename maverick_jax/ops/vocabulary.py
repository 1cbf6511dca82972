"""Helpers for rows [c, V] whose vocabulary may be sharded over mesh axes: chunking, log-sum-exp, gather, scatter. All
run inside `shard_map`. Results without a vocabulary axis are equal on every device.

c rows, v vocabulary entries on this device, m tokens of the whole vocabulary per row.
"""

import jax
import jax.numpy as jnp
from jax import lax


def chunks(rows: int, *trees):
    """Reshapes arrays [n, ...] to [chunks, rows, ...]; pads the last chunk with zeros."""

    def cut(x):
        fill = -x.shape[0] % rows
        x = jnp.concatenate([x, jnp.zeros_like(x, shape=(fill, *x.shape[1:]))]) if fill else x
        return x.reshape(x.shape[0] // rows, rows, *x.shape[1:])

    return jax.tree.map(cut, trees)


def unchunked(x, n: int):
    """Inverse of `chunks`: [chunks, rows, ...] -> [n, ...]."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:n]


def first_token(axes, v: int):
    """First token id of this device's shard."""
    return lax.axis_index(axes) * v if axes else 0


def log_sum_exp(axes, logits):
    """Log-sum-exp over the whole vocabulary, [c, v] -> [c]. A row of only -inf gives -inf."""
    largest = lax.pmax(jnp.max(logits, axis=-1), axes)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.log(lax.psum(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1), axes)) + largest


def log_softmax(axes, logits):
    return logits - log_sum_exp(axes, logits)[:, None]


def is_token(axes, ids, v: int):
    """bool[c, v]: true at each row's token `ids` int32[c]."""
    return (ids - first_token(axes, v))[:, None] == jnp.arange(v, dtype=ids.dtype)[None, :]


def gather(axes, values, ids):
    """[c, m]: the entries of values [c, v] at ids int32[c, m], whichever device holds them."""
    v = values.shape[1]
    at = ids - first_token(axes, v)
    here = (at >= 0) & (at < v)
    found = jnp.take_along_axis(values, jnp.where(here, at, 0), axis=1)
    return lax.psum(jnp.where(here, found, 0), axes)


def places(axes, values, ids):
    """`values.at[...]` for ids int32[c, m] in values [c, v]. Set or add with mode="drop": ids of other devices' shards
    are out of range."""
    v = values.shape[1]
    at = ids - first_token(axes, v)
    at = jnp.where((at >= 0) & (at < v), at, v)  # a negative index would count from the end
    return values.at[jnp.arange(at.shape[0])[:, None], at]


def times(scale, dhidden, dhead):
    """The gradients of hidden states, in their dtype, and of the output matrix, float32, times `scale` float32[]: both
    in the dtype of the hidden states. `scale` is 1 over the batch's total weight; rounded to bfloat16, it would make
    every gradient of a batch up to 0.4% too large or too small."""
    return tuple((x.astype(jnp.float32) * scale).astype(dhidden.dtype) for x in (dhidden, dhead))

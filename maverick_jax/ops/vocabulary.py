"""What rows of numbers per token need where the vocabulary may be split over mesh axes: themselves in chunks, sums over
all of it, and some tokens' numbers in or out. To be used inside `shard_map`; results without a vocabulary are the same
on every device.

c rows, v vocabulary entries on this device, m tokens of the whole vocabulary per row.
"""

import jax
import jax.numpy as jnp
from jax import lax


def chunks(rows: int, *trees):
    """Arrays [n, ...] as [chunks, rows, ...]; the last chunk is filled up with zeros."""

    def cut(x):
        fill = -x.shape[0] % rows
        x = jnp.concatenate([x, jnp.zeros_like(x, shape=(fill, *x.shape[1:]))]) if fill else x
        return x.reshape(x.shape[0] // rows, rows, *x.shape[1:])

    return jax.tree.map(cut, trees)


def unchunked(x, n: int):
    """[n, ...] of [chunks, rows, ...]."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])[:n]


def first_token(axes, v: int):
    """Of this device's part."""
    return lax.axis_index(axes) * v if axes else 0


def log_sum_exp(axes, logits):
    """[c] of [c, v]. Rows of nothing but -inf give -inf."""
    largest = lax.pmax(jnp.max(logits, axis=-1), axes)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.log(lax.psum(jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1), axes)) + largest


def log_softmax(axes, logits):
    return logits - log_sum_exp(axes, logits)[:, None]


def is_token(axes, ids, v: int):
    """bool[c, v]: where tokens int32[c] are in rows of v."""
    return (ids - first_token(axes, v))[:, None] == jnp.arange(v, dtype=ids.dtype)[None, :]


def gather(axes, values, ids):
    """[c, m]: the values [c, v] of ids int32[c, m], whichever device holds them."""
    v = values.shape[1]
    at = ids - first_token(axes, v)
    here = (at >= 0) & (at < v)
    found = jnp.take_along_axis(values, jnp.where(here, at, 0), axis=1)
    return lax.psum(jnp.where(here, found, 0), axes)


def places(axes, values, ids):
    """Where ids int32[c, m] are in [c, v], to be set or added to with mode="drop": others' tokens have no place."""
    v = values.shape[1]
    at = ids - first_token(axes, v)
    at = jnp.where((at >= 0) & (at < v), at, v)  # a negative index would count from the end
    return values.at[jnp.arange(at.shape[0])[:, None], at]

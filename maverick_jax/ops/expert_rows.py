"""Some experts of a stack of them, taken out and put back, wherever they live.

L periods, E experts, P chosen experts of all periods, S of one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from maverick_jax.ops.collectives import vary
from maverick_jax.sharding import Axes, axes_tuple


class Rows(NamedTuple):
    """Which experts of an array [L, E, ...], each once."""

    period: np.ndarray  # int32[P]
    expert: np.ndarray  # int32[P]


def take_rows(w: jax.Array, rows: Rows) -> jax.Array:
    """`rows` of w [L, E, ...], [P, ...]; the other axes are split as they were. Each number is sent by the device that
    holds it."""
    experts, *rest = _spec(w)[1:]

    def local(w):
        place = _here(rows.expert, w.shape[1], experts)
        return lax.psum(w.at[rows.period, place].get(mode="fill", fill_value=0), axes_tuple(experts))

    return jax.shard_map(local, in_specs=P(*_spec(w)), out_specs=P(None, *rest))(w)


def put_rows(w: jax.Array, values: jax.Array, rows: Rows) -> jax.Array:
    """w [L, E, ...] with `values` [P, ...] in the place of its `rows`, and all else as it was, to the bit."""
    experts, *rest = _spec(w)[1:]

    def local(w, values):
        place = _here(rows.expert, w.shape[1], experts)
        return w.at[rows.period, place].set(values, mode="drop", unique_indices=True)

    spec = P(None, *rest)
    return jax.shard_map(local, in_specs=(P(*_spec(w)), spec), out_specs=P(*_spec(w)))(w, reshard(values, spec))


def with_rows(w: jax.Array, values: jax.Array, expert: jax.Array) -> jax.Array:
    """w [E, ...] with `values` [S, ...] as its experts `expert`, int32[S]; E or more: nobody. Splits as `put_rows`."""
    experts, *rest = _spec(w)
    axes = axes_tuple(experts)

    def local(w, values, expert):
        place = _here(expert, w.shape[0], experts)
        return w.at[place].set(vary(values, axes), mode="drop")

    spec = P(None, *rest)
    return jax.shard_map(local, in_specs=(P(experts, *rest), spec, P()), out_specs=P(experts, *rest))(
        w, reshard(values, spec), expert
    )


def _here(expert, count: int, axes: Axes) -> jax.Array:
    """The places of experts among the `count` of this device; `count` for those that are elsewhere."""
    first = lax.axis_index(axes_tuple(axes)) * count if axes_tuple(axes) else 0
    place = jnp.asarray(expert) - first
    return jnp.where((place >= 0) & (place < count), place, count)


def _spec(w: jax.Array) -> tuple[Axes, ...]:
    """The mesh axes that split each axis of w."""
    spec = tuple(jax.typeof(w).sharding.spec)
    return spec + (None,) * (w.ndim - len(spec))

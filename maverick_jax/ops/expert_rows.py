"""Reads and writes some experts of a stacked array, whichever devices hold them.

L periods, E experts, P chosen experts in all periods, S chosen experts in one period.
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


class ExpertRows(NamedTuple):
    """The chosen experts of an array [L, E, ...], each listed once."""

    period: np.ndarray  # int32[P]
    expert: np.ndarray  # int32[P]


def take_rows(w: jax.Array, rows: ExpertRows) -> jax.Array:
    """The rows [P, ...] of w [L, E, ...] that `rows` lists. The other axes keep their sharding. Each number is sent by
    the device that holds it."""
    experts, *rest = _spec(w)[1:]

    def local(w):
        place = _here(rows.expert, w.shape[1], experts)
        return lax.psum(w.at[rows.period, place].get(mode="fill", fill_value=0), axes_tuple(experts))

    return jax.shard_map(local, in_specs=P(*_spec(w)), out_specs=P(None, *rest))(w)


def put_rows(w: jax.Array, values: jax.Array, rows: ExpertRows) -> jax.Array:
    """w [L, E, ...] with its `rows` replaced by `values` [P, ...]; everything else is unchanged to the bit."""
    experts, *rest = _spec(w)[1:]

    def local(w, values):
        place = _here(rows.expert, w.shape[1], experts)
        return w.at[rows.period, place].set(values, mode="drop", unique_indices=True)

    spec = P(None, *rest)
    return jax.shard_map(local, in_specs=(P(*_spec(w)), spec), out_specs=P(*_spec(w)))(w, reshard(values, spec))


def with_rows(w: jax.Array, values: jax.Array, expert: jax.Array) -> jax.Array:
    """w [E, ...] with the experts `expert` int32[S] replaced by `values` [S, ...]; E or more means no expert. Sharded
    as w."""
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
    """Indices of experts among the `count` of this device; `count` for experts of other devices."""
    first = lax.axis_index(axes_tuple(axes)) * count if axes_tuple(axes) else 0
    place = jnp.asarray(expert) - first
    return jnp.where((place >= 0) & (place < count), place, count)


def _spec(w: jax.Array) -> tuple[Axes, ...]:
    """The mesh axes that split each axis of w."""
    spec = tuple(jax.typeof(w).sharding.spec)
    return spec + (None,) * (w.ndim - len(spec))

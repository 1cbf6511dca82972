"""The schedule of a pipeline: the layers are divided among stages, and the rows of a batch into microbatches that pass
through the stages one after the other (GPipe, arXiv 1811.06965).

In each turn every stage computes one microbatch and hands it to the next stage. Microbatch m is at stage s in turn
m + s, so M microbatches and S stages take M + S - 1 turns. In the other S - 1 of its turns, the bubble, a stage
computes with zeros, and no result depends on that. The gradient runs the turns backward and needs no schedule of its
own.

B rows of a batch, M microbatches of B/M rows, S stages, L periods.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.stages import num_stages, over_stages
from maverick_jax.sharding import PIPELINE_AXIS, dimensions, spec_of


def num_turns(stages: int, microbatches: int) -> int:
    return microbatches + stages - 1


def bubble(stages: int, microbatches: int) -> float:
    """The fraction of the turns in which a stage has no microbatch."""
    return (stages - 1) / num_turns(stages, microbatches)


def pipelined(
    stage: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]], periods: Any, x: jax.Array, rows: Any, M: int
) -> tuple[jax.Array, Any]:
    """Passes x [B, ...] through all periods.

    `stage(periods, x, rows)` computes a microbatch x [B/M, ...] with some periods [L/S, ...] and returns it with a tree
    of arrays [L/S, ...]. `periods` are arrays [L, ...], split over the pipeline axis; `rows`, arrays [B, ...]. Returns
    the result [B, ...] and the trees of all microbatches and stages, arrays [M, L, ...].
    """
    S = num_stages()
    feed = _at_stages(_cut(x, M), S, first_only=True)
    given = jax.tree.map(lambda a: _at_stages(_cut(a, M), S), rows)
    periods = jax.tree.map(lambda a: _divided(a, S, len(a) // S), periods)

    def turn(x, now):
        new, given = now
        x, seen = over_stages(stage)(periods, _next(x, new, S), given)
        return x, (x, seen)

    kind = jax.typeof(feed)
    start = jnp.zeros(kind.shape[1:], kind.dtype, out_sharding=PartitionSpec(*kind.sharding.spec.partitions[1:]))
    _, (x, seen) = lax.scan(turn, start, (feed, given))
    seen = jax.tree.map(lambda a: _merged(_by_microbatch(a, M)), seen)
    return _joined(_last(_by_microbatch(x, M), S)), seen


def _joined(x: jax.Array) -> jax.Array:
    """[M, B/M, ...] -> [B, ...]: the inverse of `_cut`."""
    _, *split = dimensions(jax.typeof(x).sharding.spec, x.ndim)
    x = jnp.swapaxes(x, 0, 1)
    return lax.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]), out_sharding=spec_of(split))


def _cut(x: jax.Array, M: int) -> jax.Array:
    """[B, ...] -> [M, B/M, ...]: each device cuts its own rows, and sends none."""
    return jnp.swapaxes(_divided(x, len(x) // M, M), 0, 1)


def _divided(x: jax.Array, outer: int, inner: int) -> jax.Array:
    """[outer x inner, ...] -> [outer, inner, ...], split over devices along the outer axis as x is along its first."""
    first, *rest = dimensions(jax.typeof(x).sharding.spec, x.ndim)
    return lax.reshape(x, (outer, inner, *x.shape[1:]), out_sharding=spec_of([first, (), *rest]))


def _at_stages(x: jax.Array, S: int, *, first_only: bool = False) -> jax.Array:
    """[M, ...] -> [turns, S, ...]: what each stage computes with in each turn, zeros where it has no microbatch.
    `first_only`: only the first stage gets it."""
    spec = jax.typeof(x).sharding.spec

    def local(x):
        here = lax.axis_index(PIPELINE_AXIS)
        x = lax.pcast(x, (PIPELINE_AXIS,), to="varying")
        if first_only:
            x = jnp.where(here == 0, x, jnp.zeros_like(x))
        padded = jnp.concatenate([x, jnp.zeros_like(x, shape=(S - 1, *x.shape[1:]))])
        return jnp.roll(padded, here, axis=0)[:, None]

    out = PartitionSpec(None, PIPELINE_AXIS, *spec.partitions[1:])
    return jax.shard_map(local, in_specs=spec, out_specs=out)(x)


def _by_microbatch(x: jax.Array, M: int) -> jax.Array:
    """[turns, S, ...] -> [M, S, ...]: the results of each microbatch at each stage."""
    spec = jax.typeof(x).sharding.spec
    local = lambda x: lax.dynamic_slice_in_dim(x, lax.axis_index(PIPELINE_AXIS), M)
    return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)


def _next(x: jax.Array, new: jax.Array, S: int) -> jax.Array:
    """[S, ...]: each stage's results go to the next one, and the first stage gets its own of `new`."""
    spec = jax.typeof(x).sharding.spec

    def local(x, new):
        received = lax.ppermute(x, PIPELINE_AXIS, [(i, i + 1) for i in range(S - 1)])
        return jnp.where(lax.axis_index(PIPELINE_AXIS) == 0, new, received)

    return jax.shard_map(local, in_specs=(spec, spec), out_specs=spec)(x, new)


def _last(x: jax.Array, S: int) -> jax.Array:
    """[M, S, ...] -> [M, ...]: the results of the last stage, on the devices of every stage."""
    spec = jax.typeof(x).sharding.spec

    def local(x):
        mine = jnp.where(lax.axis_index(PIPELINE_AXIS) == S - 1, x[:, 0], 0)
        return lax.psum(mine, PIPELINE_AXIS)

    return jax.shard_map(local, in_specs=spec, out_specs=PartitionSpec(None, *spec.partitions[2:]))(x)


def _merged(x: jax.Array) -> jax.Array:
    """[M, S, L/S, ...] -> [M, L, ...], on the devices of every stage."""
    split = dimensions(jax.typeof(x).sharding.spec, x.ndim)
    return reshard(x, spec_of([(), (), *split[2:]])).reshape(len(x), -1, *x.shape[3:])

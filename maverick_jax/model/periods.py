"""The periods of a model as stages of a pipeline, each of which scans over its own."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.model.attention import Positions
from maverick_jax.model.layers import Period, Seen, Taps
from maverick_jax.ops.pipeline import pipelined
from maverick_jax.ops.stages import num_stages
from maverick_jax.sharding import PIPELINE_AXIS, ShardingRules, dimensions, size_of, spec_of


def by_stages(x: jax.Array) -> jax.Array:
    """x [L, ...] of the L periods, split over the stages of the pipeline."""
    return reshard(x, PartitionSpec(PIPELINE_AXIS)) if num_stages() > 1 else x


def _at_their_stage(x: jax.Array) -> jax.Array:
    """x [L, ...], split over the stages: arrays made beside the model's, such as adapters, may not be."""
    return reshard(x, spec_of([(PIPELINE_AXIS,), *dimensions(jax.typeof(x).sharding.spec, x.ndim)[1:]]))


def through_stages(
    periods: Period, x: jax.Array, positions: Positions, real: jax.Array | None, taps: Taps, rules: ShardingRules
) -> tuple[jax.Array, Seen]:
    """x [B, T, D] through all periods, and what `taps` asks for, with a leading axis of periods."""
    B = len(x)
    leaves, tree = jax.tree.flatten((positions, real))
    split = [len(leaf) == B for leaf in leaves]  # others are the same for all rows

    def stage(periods, x, rows):
        rows = iter(rows)
        own = tree.unflatten([next(rows) if mine else leaf for leaf, mine in zip(leaves, split, strict=True)])
        return jax.lax.scan(lambda x, period: period(x, *own, taps), x, periods)

    rows = [leaf for leaf, mine in zip(leaves, split, strict=True) if mine]
    periods = jax.tree.map(_at_their_stage, periods)
    x, seen = pipelined(stage, periods, x, rows, num_microbatches(B, rules))
    stats = jax.tree.map(lambda s: jnp.sum(s, axis=0), seen.stats)
    # [M, L, B/M, ...] -> [L, B, ...]
    whole = lambda v: jnp.moveaxis(v, 0, 2).reshape(v.shape[1], -1, *v.shape[3:])
    return x, Seen(stats, jax.tree.map(whole, seen.hidden), jax.tree.map(whole, seen.router))


def num_microbatches(rows: int, rules: ShardingRules) -> int:
    """Microbatches of a batch of so many rows on the mesh in use. Raises InputError if they do not divide its rows."""
    own = rows // size_of(jax.sharding.get_abstract_mesh().shape, rules.batch)
    found = rules.microbatches or own
    if own % found:
        raise InputError(f"mesh.microbatches: {found} does not divide the {own} rows of a device")
    return found

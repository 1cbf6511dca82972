"""The residual stream [B, T, D], whose positions are split between blocks over more devices than inside them.

A block whose work is split over the devices of the tensor axis gathers its input's positions (`gather_tokens`). What it
computes are partial sums over these devices, and `scatter_tokens` adds them up so that each device gets its own
positions. Together they send as much as one all-reduce of the result would; norms, router and residual additions are
computed once instead of on every device, and the stream takes a fraction of the memory (sequence parallelism, arXiv
2205.05198).

In JAX's types, partial sums are `unreduced` over the axes that are to be added up. Gathered positions are `reduced`:
their cotangents are partial sums, which the transpose of the gather scatters in the same way.
"""

import jax
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.stages import shard_map
from maverick_jax.sharding import ShardingRules, axes_tuple, dimensions, spec_of


def stream_spec(rules: ShardingRules, length: int, *rest: str | None) -> PartitionSpec:
    """The spec of an array [B, T, ...] of the residual stream of T = `length` positions; `rest` are the logical axes of
    its other dimensions."""
    first, positions, *others = rules.storage("batch", "length", *rest)
    own = rules.within_blocks(length, _sizes())
    return PartitionSpec(first, (*axes_tuple(positions), *own) if own else positions, *others)


def sums_spec(rules: ShardingRules, length: int) -> PartitionSpec:
    """The spec of a block's result [B, T, D]: partial sums over the devices that `scatter_tokens` adds up."""
    whole = rules.storage("batch", "length", "residual")
    return PartitionSpec(*whole, unreduced=frozenset(rules.within_blocks(length, _sizes())))


def gather_tokens(x: jax.Array, rules: ShardingRules) -> jax.Array:
    """x [B, T, ...] of the residual stream with all positions of `rules.length`, `reduced` over the others' axes; x
    itself where nothing else splits its positions."""
    batch, positions, *rest = dimensions(jax.typeof(x).sharding.spec, x.ndim)
    own = tuple(axis for axis in positions if axis in rules.within_blocks(x.shape[1], _sizes()))
    if not own:
        return x
    local = lambda x: lax.all_gather(x, own, axis=1, tiled=True, to="reduced")
    whole = PartitionSpec(batch, rules.length, *spec_of(rest), reduced=frozenset(own))
    return shard_map(local, in_specs=jax.typeof(x).sharding.spec, out_specs=whole)(x)


def scatter_tokens(x: jax.Array, rules: ShardingRules) -> jax.Array:
    """A block's result [B, T, D] of spec `sums_spec`, added up and split as the residual stream; x itself if it holds
    no partial sums."""
    spec = jax.typeof(x).sharding.spec
    if not spec.unreduced:
        return x
    out, own = stream_spec(rules, x.shape[1], "residual"), rules.within_blocks(x.shape[1], _sizes())
    local = lambda x: lax.psum_scatter(x, own, scatter_dimension=1, tiled=True)
    return shard_map(local, in_specs=spec, out_specs=out)(x)


def working(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Gathered positions for work that is split over mesh `axes`. If it is not split over those that x was gathered
    over, every device does the same, and the cotangent of x is no partial sum."""
    spec = jax.typeof(x).sharding.spec
    return x if spec.reduced <= frozenset(axes) else reshard(x, PartitionSpec(*spec.partitions))


def _sizes():
    return jax.sharding.get_abstract_mesh().shape

"""Experts that take a limited number of each row's tokens: the first ones, in the order of the row.

A row is the group in which tokens are counted (GShard, arXiv 2006.16668), whatever devices share it, so what is dropped
depends on no mesh, no accumulation and no other row.

b rows on this device, B in the batch, T tokens of a row, k experts of a token, E experts.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, reshard

from maverick_jax.ops.row_split import row_split
from maverick_jax.ops.stages import shard_map
from maverick_jax.sharding import ShardingRules, axes_tuple


def within_limit(experts: jax.Array, limit: int, num_experts: int, rules: ShardingRules) -> tuple[jax.Array, jax.Array]:
    """`experts` int32[B, T, k], those of each token, all different, E = `num_experts` for none, of tokens with the
    positions of `rules.length`, in the order of the devices that share rows. Returns them with E for those of tokens
    beyond the first `limit` of an expert in a row, and how many these are in the batch, float32[], exact up to 2^24."""
    spec, length, whole = jax.typeof(experts).sharding.spec, axes_tuple(rules.length), experts.shape[1]
    split = row_split(whole, rules)

    def local(experts):
        rows = experts
        if split.ways > 1:
            rows = split.whole(lax.all_gather(experts, length, axis=1, tiled=True), 1)
        kept = _first(rows.reshape(len(rows), -1), limit).reshape(rows.shape)
        if split.ways > 1:
            here = lax.axis_index(length) * experts.shape[1]
            kept = lax.dynamic_slice_in_dim(split.split(kept, 1), here, experts.shape[1], axis=1)
        dropped = jnp.sum((experts < num_experts) & ~kept, dtype=jnp.int32)
        return jnp.where(kept, experts, num_experts), lax.psum(dropped, rules.tokens).astype(jnp.float32)

    tokens = PartitionSpec(*spec.partitions)
    kept, dropped = shard_map(local, in_specs=tokens, out_specs=(tokens, PartitionSpec()))(reshard(experts, tokens))
    return reshard(kept, spec), dropped


def _first(expert: jax.Array, limit: int) -> jax.Array:
    """bool[b, M]: which elements of int32[b, M] are among the first `limit` of equal ones in their row."""
    order = jnp.argsort(expert, axis=1, stable=True)
    ordered = jnp.take_along_axis(expert, order, axis=1)
    place = lax.broadcasted_iota(jnp.int32, expert.shape, 1)
    begins = jnp.concatenate([jnp.ones_like(ordered[:, :1], bool), ordered[:, 1:] != ordered[:, :-1]], axis=1)
    kept = place - lax.cummax(jnp.where(begins, place, 0), axis=1) < limit
    return jnp.put_along_axis(jnp.zeros_like(kept), order, kept, axis=1, inplace=False)


def within_limit_reference(experts: jax.Array, limit: int, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """`within_limit` of rows in their own order on one device, by counting each expert's tokens. O(B T k E) memory."""
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32)  # zeros for none
    taken = jnp.cumsum(jnp.sum(chosen, axis=2), axis=1)  # [B, T, E], up to this token
    over = jnp.sum(chosen * taken[:, :, None], axis=-1) > limit
    return jnp.where(over, num_experts, experts), jnp.sum(over).astype(jnp.float32)

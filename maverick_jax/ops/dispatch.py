"""Expert parallelism: an all-to-all sends each row to the device that holds its expert, and the result back.

The backward pass sends the cotangents there and back, and again the rows that the forward pass did not save.

M rows on this device, D model, E experts, e experts on this device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.sharding import reshard

from maverick_jax.ops.affine import scaled
from maverick_jax.ops.collectives import gather_weight, use_sharded, vary
from maverick_jax.ops.exchange import (
    Among,
    Capacity,
    Places,
    capacity,
    expert_of_received,
    limited_capacity,
    places,
    send,
    send_back,
)
from maverick_jax.ops.grouped_matmul import grouped_swiglu
from maverick_jax.ops.stages import shard_map
from maverick_jax.ops.stream import sums_spec, working
from maverick_jax.saved import RECEIVED
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.target import traced_platform

FURTHER_ROUNDS = "further_rounds"
"""The scope of the loop over the rounds that run only if some device needs them."""


def routed_experts(x, scores, experts, w_in, w_out, rules: ShardingRules, limit: int | None = None) -> jax.Array:
    """Sum over the chosen experts of Expert(score * x).

    x [B, T, D]; scores [B, T, k] in x's dtype; experts int32[B, T, k], where E means no expert; w_in [E, D, 2, F] and
    w_out [E, F, D] of any dtype, as stored: each device gathers its experts in x's dtype. Returns [B, T, D]; of tokens
    that `ops.stream` gathered, partial sums. `limit`: the most tokens of a sequence that an expert has in `experts`, as
    `ops.expert_limit` leaves them, None: any number; the exchange has room for no more.
    """
    expert_axes, tensor_axes = axes_tuple(rules.experts), axes_tuple(rules.expert_mlp)
    varying = rules.tokens + tensor_axes

    def local(x, scores, experts, w_in, w_out):
        x, scores, experts = (vary(a, varying) for a in (x, scores, experts))
        w_in, w_out = (gather_weight(w, x.dtype, gathered, varying) for w, gathered in ((w_in, of_in), (w_out, of_out)))
        with jax.named_scope("dispatch"):
            rows = scaled(x[:, :, None, :], scores[..., None]).reshape(-1, x.shape[-1])
        size = _room(experts.shape, lax.axis_size(expert_axes), w_in.shape[0], limit)
        out = _to_experts(Among(expert_axes, varying), size, rows, w_in, w_out, experts.reshape(-1))
        with jax.named_scope("dispatch"):
            out = lax.psum(jnp.sum(out.reshape(*scores.shape, -1), axis=2), summed)
        return lax.pcast(out, partial, to="unreduced")

    x, scores, experts = (working(a, tensor_axes) for a in (x, scores, experts))
    tokens, left = jax.typeof(x).sharding.spec, jax.typeof(x).sharding.spec.reduced
    summed, partial = (tuple(axis for axis in tensor_axes if (axis in left) == kept) for kept in (False, True))
    w_in, of_in = use_sharded(w_in, P(rules.experts, None, None, rules.expert_mlp), varying)
    w_out, of_out = use_sharded(w_out, P(rules.experts, rules.expert_mlp, None), varying)
    w_specs = (jax.typeof(w).sharding.spec for w in (w_in, w_out))
    sums = P(*tokens.partitions, unreduced=left)
    out = shard_map(local, in_specs=(tokens, tokens, tokens, *w_specs), out_specs=sums)(x, scores, experts, w_in, w_out)
    return reshard(out, sums_spec(rules, x.shape[1]))


def _room(chosen: tuple[int, int, int], devices: int, num_local: int, limit: int | None) -> Capacity | None:
    """Of the exchange of a device whose tokens chose experts [B, T, k]; None: it has all experts."""
    if devices == 1:
        return None
    if limit is None:
        return capacity(math.prod(chosen), devices, traced_platform())
    return limited_capacity(*chosen, num_local, limit)


def _to_experts(among: Among, size: Capacity | None, rows, w_in, w_out, expert):
    """Applies to each row [M, D] its expert int32[M], on whichever device that is. Must run inside `shard_map`."""
    if size is None:
        return grouped_swiglu(rows, w_in, w_out, expert)
    return _exchange(among, size, rows, w_in, w_out, expert)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _exchange(among: Among, size: Capacity, rows, w_in, w_out, expert):
    return _forward(among, size, rows, w_in, w_out, expert)[0]


def _forward(among: Among, size: Capacity, rows, w_in, w_out, expert):
    where = places(among, expert, w_in.shape[0], size)

    def one_round(i, received, out):
        results = grouped_swiglu(received, w_in, w_out, expert_of_received(where, size, i))
        return send_back(among, where, size, results, out, i)

    saved = [checkpoint_name(send(among, where, size, rows, i), RECEIVED) for i in range(size.rounds)]
    out = jnp.zeros_like(rows)
    for i, received in enumerate(saved):
        out = one_round(i, received, out)
    more = lambda i, out: one_round(i, send(among, where, size, rows, i), out)
    out = _further(size, where, more, out)
    return out, (rows, w_in, w_out, where, saved)


def _backward(among: Among, size: Capacity, saved, dout):
    rows, w_in, w_out, where, first = saved

    def one_round(i, received, carry):
        drows, dw_in, dw_out = carry
        mine = expert_of_received(where, size, i)
        _, vjp = jax.vjp(lambda x, w_in, w_out: grouped_swiglu(x, w_in, w_out, mine), received, w_in, w_out)
        dx, more_in, more_out = vjp(send(among, where, size, dout, i))
        drows = send_back(among, where, size, dx, drows, i)
        return drows, dw_in + more_in.astype(jnp.float32), dw_out + more_out.astype(jnp.float32)

    # rounds are summed in float32 for weights of any dtype
    zeros = lambda w: jnp.zeros_like(w, dtype=jnp.float32)
    carry = jnp.zeros_like(rows), zeros(w_in), zeros(w_out)
    for i, received in enumerate(first):
        carry = one_round(i, received, carry)
    more = lambda i, carry: one_round(i, send(among, where, size, rows, i), carry)
    drows, dw_in, dw_out = _further(size, where, more, carry)
    return drows, dw_in.astype(w_in.dtype), dw_out.astype(w_out.dtype), None


@jax.named_scope(FURTHER_ROUNDS)
def _further(size: Capacity, where: Places, one_round, carry):
    """What `one_round(i, carry)` makes of `carry` in the rounds after the first ones."""
    return carry if where.rounds is None else lax.fori_loop(size.rounds, where.rounds, one_round, carry)


_exchange.defvjp(_forward, _backward)

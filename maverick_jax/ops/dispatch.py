"""Expert parallelism: an all-to-all sends each row to the device that holds its expert, and the result back.

All collectives of the routed experts are here. Buffers are static: each pair of devices exchanges at most `capacity`
rows per round, and rounds repeat until every row has been sent, so that even the most skewed routing drops no row.
The backward pass sends the rows again, together with their cotangents, instead of keeping the received rows.

M rows on this device, D model, E experts, e experts on this device, R devices of the expert axis, C capacity.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.affine import scaled
from maverick_jax.ops.collectives import gather_weight, use_sharded, vary
from maverick_jax.ops.grouped_matmul import grouped_swiglu
from maverick_jax.sharding import ShardingRules, axes_tuple

T = TypeVar("T")
SLACK = 1.25  # capacity divided by an even share: one round suffices for balanced routing


def routed_experts(x, scores, experts, w_in, w_out, rules: ShardingRules) -> jax.Array:
    """Sum over the chosen experts of Expert(score * x).

    x [B, T, D]; scores [B, T, k] in x's dtype; experts int32[B, T, k], where E means no expert; w_in [E, D, 2, F] and
    w_out [E, F, D] of any dtype, as stored: each device gathers its experts in x's dtype. Returns [B, T, D].
    """
    expert_axes, tensor_axes = axes_tuple(rules.experts), axes_tuple(rules.expert_mlp)
    varying = axes_tuple(rules.batch) + axes_tuple(rules.length) + tensor_axes

    def local(x, scores, experts, w_in, w_out):
        x, scores, experts = (vary(a, varying) for a in (x, scores, experts))
        w_in, w_out = (gather_weight(w, x.dtype, gathered, varying) for w, gathered in ((w_in, of_in), (w_out, of_out)))
        with jax.named_scope("dispatch"):
            rows = scaled(x[:, :, None, :], scores[..., None]).reshape(-1, x.shape[-1])
        out = _exchange(expert_axes, varying, rows, w_in, w_out, experts.reshape(-1))
        with jax.named_scope("dispatch"):
            return lax.psum(jnp.sum(out.reshape(*scores.shape, -1), axis=2), tensor_axes)

    tokens = rules.storage("batch", "length", None)
    w_in, of_in = use_sharded(w_in, P(rules.experts, None, None, rules.expert_mlp), varying)
    w_out, of_out = use_sharded(w_out, P(rules.experts, rules.expert_mlp, None), varying)
    w_specs = (jax.typeof(w).sharding.spec for w in (w_in, w_out))
    return jax.shard_map(local, in_specs=(tokens, tokens, tokens, *w_specs), out_specs=tokens)(
        x, scores, experts, w_in, w_out
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _exchange_rows(axes, varying, rows, w_in, w_out, expert):
    plan = _ExchangePlan(axes, varying, expert, w_in.shape[0])

    def one_round(i, out):
        received = plan.to_experts(rows, i)
        return plan.back(grouped_swiglu(received, w_in, w_out, plan.expert_of_received(i)), out, i)

    return plan.rounds(one_round, jnp.zeros_like(rows))


def _forward(axes, varying, rows, w_in, w_out, expert):
    return _exchange_rows(axes, varying, rows, w_in, w_out, expert), (rows, w_in, w_out, expert)


def _backward(axes, varying, saved, dout):
    rows, w_in, w_out, expert = saved
    plan = _ExchangePlan(axes, varying, expert, w_in.shape[0])

    def one_round(i, carry):
        drows, dw_in, dw_out = carry
        received, dreceived = plan.to_experts(rows, i), plan.to_experts(dout, i)
        mine = plan.expert_of_received(i)
        _, vjp = jax.vjp(lambda x, w_in, w_out: grouped_swiglu(x, w_in, w_out, mine), received, w_in, w_out)
        dx, more_in, more_out = vjp(dreceived)
        return plan.back(dx, drows, i), dw_in + more_in.astype(jnp.float32), dw_out + more_out.astype(jnp.float32)

    # rounds are summed in float32 for weights of any dtype
    zeros = lambda w: jnp.zeros_like(w, dtype=jnp.float32)
    init = (jnp.zeros_like(rows), zeros(w_in), zeros(w_out))
    drows, dw_in, dw_out = plan.rounds(one_round, init)
    return drows, dw_in.astype(w_in.dtype), dw_out.astype(w_out.dtype), None


_exchange_rows.defvjp(_forward, _backward)


def _exchange(axes, varying, rows, w_in, w_out, expert):
    """Applies to each row its expert, on whichever device that is. Must run inside `shard_map`."""
    if lax.axis_size(axes) == 1:
        return grouped_swiglu(rows, w_in, w_out, expert)
    return _exchange_rows(axes, varying, rows, w_in, w_out, expert)


class _ExchangePlan:
    """Which rows each device sends to which device in which round, from this device's `expert` int32[M]."""

    @jax.named_scope("dispatch")
    def __init__(self, axes, varying, expert, num_local: int):
        self.axes, self.num_local = axes, num_local
        self.num_devices = lax.axis_size(axes)
        self.num_rows = expert.shape[0]
        self.capacity = max(8, -(-int(self.num_rows * SLACK) // self.num_devices))
        self.expert = expert
        # once sorted by expert, the rows for one device are contiguous, and so are the rows of each of its experts
        self.order = jnp.argsort(expert, stable=True).astype(jnp.int32)
        device = expert // num_local
        devices = jnp.arange(self.num_devices, dtype=device.dtype)
        self.count = jnp.sum(device[:, None] == devices[None, :], axis=0, dtype=jnp.int32)
        self.start = jnp.cumsum(self.count) - self.count
        # all devices must run the same number of rounds, or the all-to-alls would not match
        self.num_rounds = lax.pmax(-(-jnp.max(self.count) // self.capacity), varying)

    def rounds(self, one_round: Callable[[Any, T], T], start: T) -> T:
        """All rounds. The first is outside the loop, and for balanced routing the only one: XLA runs a loop whose count
        only the device knows by itself, so that nothing hides the exchanges inside it."""
        return lax.fori_loop(1, self.num_rounds, one_round, one_round(0, start))

    def _rows_of_round(self, i) -> jax.Array:
        """Rows to send in round i, int32[R, C]; M in unused slots."""
        slot = i * self.capacity + jnp.arange(self.capacity, dtype=jnp.int32)
        index = jnp.minimum(self.start[:, None] + slot[None, :], self.num_rows - 1)
        return jnp.where(slot[None, :] < self.count[:, None], self.order[index], self.num_rows)

    def _all_to_all(self, x):
        return lax.all_to_all(x, self.axes, split_axis=0, concat_axis=0, tiled=True)

    @jax.named_scope("dispatch")
    def to_experts(self, rows, i) -> jax.Array:
        """[M, D]: this device's rows -> [R*C, D]: rows for this device's experts."""
        send = rows.at[self._rows_of_round(i)].get(mode="fill", fill_value=0)
        return self._all_to_all(send).reshape(-1, rows.shape[-1])

    @jax.named_scope("dispatch")
    def expert_of_received(self, i) -> jax.Array:
        """Local expert of each received row, int32[R*C]; e in unused slots."""
        index = self._rows_of_round(i)
        local = self.expert.at[index].get(mode="fill", fill_value=0) % self.num_local
        return self._all_to_all(jnp.where(index < self.num_rows, local, self.num_local)).reshape(-1)

    @jax.named_scope("dispatch")
    def back(self, received, out, i) -> jax.Array:
        """Sends back the results [R*C, D] of this device's experts; returns `out` [M, D] with those of round i."""
        returned = self._all_to_all(received.reshape(self.num_devices, self.capacity, -1))
        return out.at[self._rows_of_round(i)].set(returned, mode="drop", unique_indices=True)

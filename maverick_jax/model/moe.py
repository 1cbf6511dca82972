"""Mixture of experts: a sigmoid router, the chosen experts on score-scaled input, and a shared expert."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.mlp import Mlp
from maverick_jax.ops.dispatch import routed_experts
from maverick_jax.ops.expert_limit import within_limit
from maverick_jax.ops.linear import linear
from maverick_jax.ops.stream import gather_tokens, scatter_tokens, stream_spec
from maverick_jax.param import build, stored
from maverick_jax.saved import ROUTER
from maverick_jax.sharding import ShardingRules


@dataclasses.dataclass(frozen=True)
class RouterStats:
    """Router statistics of one MoE layer, summed over the real tokens of the batch. Every field is a sum over tokens or
    rows, so adding the statistics of microbatches gives those of the batch. A leading axis stacks the MoE layers."""

    load: jax.Array
    """Assignments per expert, float32[E]."""
    balance_loss: jax.Array
    """Sum over rows of tokens x E x sum_e load share_e x mean probability_e, float32[]."""
    z_loss: jax.Array
    """Sum of squared logsumexp of the logits, float32[]."""
    entropy: jax.Array
    """Sum of the entropy, in nats, of softmax(logits), float32[]."""
    dropped: jax.Array | None = None
    """Assignments that experts did not take (`ModelConfig.expert_capacity_factor`), float32[]; None: they take all."""


jax.tree_util.register_dataclass(RouterStats)


class Routed(NamedTuple):
    """The outputs of one router."""

    stats: RouterStats
    logits: jax.Array
    """float32[B, T, E]."""


class Moe(nnx.Module):
    """y = shared(x) + sum over the top-k experts e of Expert_e(sigmoid(r_e) x), with r = x router. An expert
    of limited capacity adds nothing to the tokens that it does not take (`ModelConfig.expert_capacity_factor`).

    The score scales the expert's input. SwiGLU is not homogeneous, so scaling its output would give another result.
    """

    router: nnx.Param
    experts_in: nnx.Param
    experts_out: nnx.Param
    router_bias: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.rules = config, rules
        build(self, parameters.experts(config), config, rules, rngs)
        self.shared = Mlp(config, parameters.shared(config), rules, rngs=rngs)
        build(self, parameters.balance(config), config, rules, rngs)

    def __call__(
        self, x: jax.Array, real: jax.Array | None, routes: jax.Array | None = None
    ) -> tuple[jax.Array, Routed]:
        """x [B, T, D] of the residual stream, normalized; real bool[B, T], False for padding, which goes to no expert;
        routes int16[B, T, k], the experts to use in place of those that the router chooses, best first. Returns
        [B, T, D] of the stream, and the router's outputs."""
        if real is not None:
            real = reshard(real, stream_spec(self.rules, real.shape[1]))
        with jax.named_scope("router"):
            logits = checkpoint_name(self.route(x), ROUTER)
            chosen = self.choose(logits) if routes is None else given(routes)  # k of int32[B, T]
            scores = [_pick(self.gates(logits), expert) for expert in chosen]
            stats = router_stats(logits, chosen, real)
        experts, scores = jnp.stack(chosen, axis=-1), jnp.stack(scores, axis=-1).astype(x.dtype)
        if real is not None:
            experts = jnp.where(real[..., None], experts, self.config.num_local_experts)
        w_in, w_out = (stored(w, self.rules, x.dtype)[0] for w in (self.experts_in, self.experts_out))
        x, scores, experts = (gather_tokens(tokens, self.rules) for tokens in (x, scores, experts))
        if (limit := self.config.expert_limit(x.shape[1])) is not None:
            with jax.named_scope("dispatch"):
                experts, dropped = within_limit(experts, limit, self.config.num_local_experts, self.rules)
            stats = dataclasses.replace(stats, dropped=dropped)
        with jax.named_scope("shared"):
            shared = self.shared(x)
        sums = shared + routed_experts(x, scores, experts, w_in, w_out, self.rules, limit)
        return scatter_tokens(sums, self.rules), Routed(stats, logits)

    def route(self, x: jax.Array) -> jax.Array:
        """Router logits float32[B, T, E]."""
        if self.config.router_dtype == "compute":
            return linear(x, self.router[...]).astype(jnp.float32)
        router = self.router[...].astype(jnp.float32)
        return jnp.einsum("BTD,DE->BTE", x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)

    def gates(self, logits: jax.Array) -> jax.Array:
        """Factors of the inputs of chosen experts, float32[B, T, E]. They are sigmoids and do not add up to 1."""
        return jax.nn.sigmoid(logits)

    def choose(self, logits: jax.Array) -> list[jax.Array]:
        """The top-k experts of each token, best first: k arrays int32[B, T]. The lowest index wins a tie."""
        ranked = jax.lax.stop_gradient(logits)
        if self.config.balance.kind == "loss_free_bias":
            ranked += jax.lax.stop_gradient(self.router_bias[...])[None, None, :]
        chosen = []
        for _ in range(self.config.num_experts_per_tok):
            chosen.append(jnp.argmax(ranked, axis=-1).astype(jnp.int32))
            ranked = jnp.where(_one_hot(chosen[-1], ranked), -jnp.inf, ranked)
        return chosen


def given(routes: jax.Array) -> list[jax.Array]:
    """As `Moe.choose`, of routes int16[B, T, k]."""
    return [routes[..., i].astype(jnp.int32) for i in range(routes.shape[-1])]


def _one_hot(expert: jax.Array, like: jax.Array) -> jax.Array:
    """bool[B, T, E]: true at index `expert` int32[B, T] of the last axis of `like` [B, T, E]."""
    index = jax.lax.broadcasted_iota(jnp.int32, like.shape, 2, out_sharding=jax.typeof(like).sharding)
    return index == expert[..., None]


def _pick(x: jax.Array, expert: jax.Array) -> jax.Array:
    """x [B, T, E] at `expert` int32[B, T] -> [B, T]."""
    return jnp.sum(jnp.where(_one_hot(expert, x), x, 0), axis=-1)


def router_stats(logits: jax.Array, chosen: list[jax.Array], real: jax.Array | None) -> RouterStats:
    """Sums over the real tokens; see RouterStats. The balance loss is the Switch loss (arXiv 2101.03961) of each row;
    its gradient flows through the probabilities only."""
    E = logits.shape[-1]
    real = jnp.ones_like(logits[..., 0]) if real is None else real.astype(jnp.float32)
    assigned = sum(_one_hot(expert, logits).astype(jnp.float32) for expert in chosen) * real[..., None]
    lse = jax.nn.logsumexp(logits, axis=-1)
    probability = jnp.exp(logits - lse[..., None]) * real[..., None]
    load = jnp.sum(assigned, axis=1)  # [B, E]
    tokens = jnp.maximum(jnp.sum(real, axis=1), 1.0)  # [B]
    balance = E / len(chosen) * jnp.sum(load * jnp.sum(probability, axis=1), axis=-1) / tokens
    entropy = lse * real - jnp.sum(probability * logits, axis=-1)
    return RouterStats(jnp.sum(load, axis=0), jnp.sum(balance), jnp.sum(real * lse**2), jnp.sum(entropy))

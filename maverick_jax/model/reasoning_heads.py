"""Reasoning heads of a layer: attention to marked tokens of the segment, beside the layer's own attention."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.overlays import linear_of
from maverick_jax.ops.marked import Marked, attention_to_marked, marked
from maverick_jax.ops.stream import scatter_tokens, sums_spec, working
from maverick_jax.param import build
from maverick_jax.reasoning import HeadGroup
from maverick_jax.saved import QKV
from maverick_jax.sharding import ShardingRules

MarkedTokens = dict[str, Marked]
"""By the name of the group of heads that sees them."""


def marked_tokens(config: ModelConfig, inputs: Inputs, rules: ShardingRules) -> MarkedTokens | None:
    """What the reasoning heads see of the inputs, computed once per forward pass; None: the inputs have no marks, or
    the model has no such heads, and nothing is added."""
    if config.reasoning_heads is None or inputs.marks is None:
        return None
    ids = jnp.ones_like(inputs.tokens) if inputs.segment_ids is None else inputs.segment_ids
    groups = config.reasoning_heads.groups
    return {group.name: marked(inputs.marks == group.mark, ids, group.tokens, rules) for group in groups}


class MarkedAttention(nnx.Module):
    """One group of heads, without rotary embedding, chunks or query temperature."""

    q: nnx.Param
    k: nnx.Param
    v: nnx.Param
    o: nnx.Param

    def __init__(self, config: ModelConfig, group: HeadGroup, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.rules = config, rules
        build(self, parameters.marked_attention(config, group.heads), config, rules, rngs)

    def __call__(self, x: jax.Array, where: Marked) -> jax.Array:
        """x [B, T, D], normalized, of whole positions -> [B, T, D] of the residual stream."""
        q, k, v = self.project(x)
        return self.output(attention_to_marked(q, k, v, where, self.rules))

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, S, H], keys and values [B, T, 1, H]."""
        dtype, same = self.config.matmul_dtype, working(x, ())  # all devices compute the same keys
        inputs = ((x, self.q), (same, self.k), (same, self.v))
        q, k, v = (checkpoint_name(linear_of(x, w, self.rules, dtype), QKV) for x, w in inputs)
        return q, k, v

    def output(self, y: jax.Array) -> jax.Array:
        """Attended values [B, T, S, H] -> [B, T, D] of the residual stream."""
        out = sums_spec(self.rules, y.shape[1])
        sums = linear_of(y, self.o, self.rules, self.config.matmul_dtype, inputs=2, out=out)
        return scatter_tokens(sums, self.rules)


class LayerHeads(nnx.Module):
    """All reasoning heads of one layer."""

    gain: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        assert config.reasoning_heads is not None
        self.names = tuple(group.name for group in config.reasoning_heads.groups)
        build(self, [p for p in parameters.reasoning(config) if p.name == "gain"], config, rules, rngs)
        for group in config.reasoning_heads.groups:
            setattr(self, group.name, MarkedAttention(config, group, rules, rngs=rngs))

    @jax.named_scope("reasoning_heads")
    def __call__(self, x: jax.Array, where: MarkedTokens) -> jax.Array:
        """x [B, T, D], normalized, of whole positions -> what is added to the residual stream, [B, T, D]."""
        return self.scaled(sum(getattr(self, name)(x, where[name]) for name in self.names))

    def scaled(self, y: jax.Array) -> jax.Array:
        return y * jnp.tanh(self.gain[...].astype(jnp.float32)).astype(y.dtype)[None, None, :]

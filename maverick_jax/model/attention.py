"""Grouped-query attention with interleaved rotary embedding (iRoPE)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.norm import rms_normalize
from maverick_jax.model.overlays import linear_of
from maverick_jax.model.rope import apply_rope, query_temperature, rope_tables
from maverick_jax.ops.attention import MaskSpec, Segments, attention
from maverick_jax.ops.stream import scatter_tokens, sums_spec
from maverick_jax.param import build
from maverick_jax.saved import QKV
from maverick_jax.sharding import ShardingRules


@dataclasses.dataclass(frozen=True)
class Positions:
    """Segments, rotary angles and query temperatures of all tokens, computed once per forward pass."""

    segments: Segments | None
    """None: every row is one segment."""
    rope: tuple[jax.Array, jax.Array]
    temperature: jax.Array | None

    @classmethod
    def of(cls, config: ModelConfig, inputs: Inputs) -> "Positions":
        """Of the inputs' tokens."""
        positions, segment_ids = inputs.positions, inputs.segment_ids
        if segment_ids is not None and positions is None:
            positions = positions_in_segments(segment_ids)
        if positions is not None and segment_ids is None:
            segment_ids = jnp.ones_like(positions)
        segments = None if positions is None else Segments(positions, segment_ids)
        if positions is None:
            positions = jnp.arange(inputs.tokens.shape[1], dtype=jnp.int32)[None, :]
        tuned = config.attn_temperature_tuning and config.no_rope_layer_interval > 0
        return cls(segments, rope_tables(config, positions), query_temperature(config, positions) if tuned else None)


jax.tree_util.register_dataclass(Positions)


def positions_in_segments(segment_ids: jax.Array) -> jax.Array:
    """Position of each token in its segment, int32[B, T], from segment ids [B, T]: 0 wherever the id changes."""
    index = jax.lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1, out_sharding=jax.typeof(segment_ids).sharding)
    changed = jnp.concatenate([jnp.ones_like(segment_ids[:, :1]), jnp.diff(segment_ids, axis=1)], axis=1) != 0
    return index - jax.lax.cummax(jnp.where(changed, index, 0), axis=1)


class Attention(nnx.Module):
    """Self-attention of one layer: local with rotary embedding (`rope`), or global without."""

    q: nnx.Param
    k: nnx.Param
    v: nnx.Param
    o: nnx.Param

    def __init__(self, config: ModelConfig, rope: bool, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.use_rope, self.rules = config, rope, rules
        build(self, parameters.attention(config), config, rules, rngs)

    @jax.named_scope("attention")
    def __call__(self, x: jax.Array, positions: Positions) -> jax.Array:
        """x [B, T, D], normalized, of whole positions -> [B, T, D] of the residual stream."""
        q, k, v = self.project(x, positions)
        return self.output(attend(q, k, v, self.mask, positions.segments, self.rules))

    @property
    def mask(self) -> MaskSpec:
        local = self.use_rope and self.config.attention_chunk_size is not None
        return MaskSpec(self.config.local_attention, self.config.attention_chunk_size) if local else MaskSpec()

    def project(self, x: jax.Array, positions: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H], after rotary embedding, norms and temperature."""
        config, dtype = self.config, x.dtype
        q, k, v = (linear_of(x, w, self.rules) for w in (self.q, self.k, self.v))
        if self.use_rope:
            q, k = apply_rope(q, positions.rope), apply_rope(k, positions.rope)
        elif positions.temperature is not None:
            q = (q.astype(jnp.float32) * positions.temperature).astype(dtype)
        q, k, v = (checkpoint_name(x, QKV) for x in (q, k, v))
        if self.use_rope and config.use_qk_norm:  # named before, because their backward pass needs what they normalize
            q, k = rms_normalize(q, config.rms_norm_eps), rms_normalize(k, config.rms_norm_eps)
        return q, k, v

    def output(self, y: jax.Array) -> jax.Array:
        """Attended values [B, T, N, H] -> [B, T, D] of the residual stream."""
        out = sums_spec(self.rules, y.shape[1])
        return scatter_tokens(linear_of(y, self.o, self.rules, inputs=2, out=out), self.rules)


def attend(q, k, v, mask: MaskSpec, segments: Segments | None, rules: ShardingRules) -> jax.Array:
    """`ops.attention` on each device's own sequences and heads, without communication."""
    queries, keys = rules("batch", "length", "heads", None), rules("batch", "length", "kv_heads", None)
    tokens = rules("batch", "length")
    spec = jax.tree.map(lambda _: tokens, segments)
    local = lambda q, k, v, segments: attention(q, k, v, mask, segments)
    return jax.shard_map(local, in_specs=(queries, keys, keys, spec), out_specs=queries)(q, k, v, segments)

"""Grouped-query attention with interleaved rotary embedding (iRoPE)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import reshard

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.norm import rms_normalize
from maverick_jax.model.overlays import linear_of
from maverick_jax.model.reasoning_heads import MarkedTokens, marked_tokens
from maverick_jax.model.rope import apply_rope, query_temperature, rope_tables
from maverick_jax.ops.attention import MaskSpec, Segments, attention
from maverick_jax.ops.context import Tokens, ring_attention
from maverick_jax.ops.row_split import places, row_split, split_rows, whole_rows
from maverick_jax.ops.stages import shard_map
from maverick_jax.ops.stream import scatter_tokens, sums_spec
from maverick_jax.param import build
from maverick_jax.row_split import RowSplit
from maverick_jax.saved import QKV
from maverick_jax.sharding import ShardingRules, axes_tuple


@dataclasses.dataclass(frozen=True)
class Positions:
    """Segments, rotary angles and query temperatures of all tokens, computed once per forward pass."""

    segments: Segments | None
    """None: every row is one segment."""
    rope: tuple[jax.Array, jax.Array]
    temperature: jax.Array | None
    rows: Tokens | None
    """Of the tokens of whole rows, if devices share them."""
    marked: MarkedTokens | None
    """What reasoning heads see; None: nothing."""
    in_cells: bool = dataclasses.field(metadata={"static": True})
    """As of `Inputs`."""

    @classmethod
    def of(cls, config: ModelConfig, inputs: Inputs, rules: ShardingRules) -> "Positions":
        """Of the inputs' tokens."""
        positions, segment_ids = inputs.positions, inputs.segment_ids
        if segment_ids is not None and positions is None:
            positions = split_rows(positions_in_segments(whole_rows(segment_ids, rules)), rules)
        if positions is not None and segment_ids is None:
            segment_ids = jnp.ones_like(positions)
        segments = None if positions is None else Segments(positions, segment_ids)
        if positions is None:
            positions = places(inputs.tokens.shape[1], rules)
        rows = shared_rows(segments, inputs.tokens.shape[1], rules)
        tuned = config.attn_temperature_tuning and config.no_rope_layer_interval > 0
        temperature = query_temperature(config, positions) if tuned else None
        cells = inputs.in_cells or segments is None
        marked = marked_tokens(config, inputs, rules)
        return cls(segments, rope_tables(config, positions), temperature, rows, marked, cells)


jax.tree_util.register_dataclass(Positions)


def shared_rows(segments: Segments | None, length: int, rules: ShardingRules) -> Tokens | None:
    """The tokens of rows of `length` that devices share, gathered from them; None if each device has its own rows."""
    split = row_split(length, rules)
    if split.ways == 1:
        return None
    where = jnp.asarray(split.places)[None, :]
    whole = lambda x: reshard(x, rules("batch", None))
    return Tokens(jax.tree.map(whole, segments) if segments else Segments(where, jnp.ones_like(where)), where)


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
        return self.output(attend(q, k, v, self.mask, positions, self.rules))

    @property
    def mask(self) -> MaskSpec:
        local = self.use_rope and self.config.attention_chunk_size is not None
        return MaskSpec(self.config.local_attention, self.config.attention_chunk_size) if local else MaskSpec()

    def project(self, x: jax.Array, positions: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, N, H], keys and values [B, T, K, H], after rotary embedding, norms and temperature."""
        config, dtype = self.config, x.dtype
        q, k, v = (linear_of(x, w, self.rules, config.matmul_dtype) for w in (self.q, self.k, self.v))
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
        sums = linear_of(y, self.o, self.rules, self.config.matmul_dtype, inputs=2, out=out)
        return scatter_tokens(sums, self.rules)


def attend(q, k, v, mask: MaskSpec, positions: Positions, rules: ShardingRules) -> jax.Array:
    """Attention of q [B, T, N, H] to k and v [B, T, K, H] -> [B, T, N, H]. Each device computes its own sequences and
    heads, without communication unless a query sees keys on other devices that share its row."""
    queries, keys = rules("batch", "length", "heads", None), rules("batch", "length", "kv_heads", None)
    with jax.named_scope(mask.kind if mask.size else "global"):
        if _local(mask, positions, row_split(q.shape[1], rules)):
            segments = jax.tree.map(lambda x: reshard(x, rules("batch", "length")), positions.segments)
            local = lambda q, k, v, segments: attention(q, k, v, mask, segments)
            spec = jax.tree.map(lambda _: rules("batch", "length"), segments)
            return shard_map(local, in_specs=(queries, keys, keys, spec), out_specs=queries)(q, k, v, segments)
        spec = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, positions.rows)
        ring = lambda q, k, v, rows: ring_attention(q, k, v, mask, rows, axes_tuple(rules.length))
        return shard_map(ring, in_specs=(queries, keys, keys, spec), out_specs=queries)(q, k, v, positions.rows)


def _local(mask: MaskSpec, positions: Positions, split: RowSplit) -> bool:
    """Whether all keys that a query sees are on its device: the chunks of documents lie within blocks."""
    if split.ways == 1:
        return True
    chunked = mask.kind == "chunked" and mask.size is not None and split.block % mask.size == 0
    return chunked and positions.in_cells

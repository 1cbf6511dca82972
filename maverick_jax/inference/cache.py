"""Decoding with cached keys and values: `prefill` processes a prompt, `decode` one more token at a time.

A layer with local attention keeps a ring buffer of `attention_chunk_size` keys, however long the text is; only the
global layers (one in four) keep every key. The model's own modules compute the layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.model.attention import Attention, Positions, attend
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Period
from maverick_jax.model.norm import rms_norm
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.attention import MaskSpec, Segments, attention_over, held_positions
from maverick_jax.ops.row_split import row_split
from maverick_jax.ops.stages import num_stages
from maverick_jax.sharding import ShardingRules
from maverick_jax.stack import PERIODS, TAIL


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one attention layer, [B, S, K, H]. Slot p mod S contains position p."""

    keys: jax.Array
    values: jax.Array

    def segments(self, last: jax.Array) -> Segments:
        """The positions in the slots if `last` int32[B] is the newest position; empty slots are padding."""
        held = held_positions(last, self.keys.shape[1])
        return Segments(held, (held >= 0).astype(jnp.int32))

    def with_token(self, k: jax.Array, v: jax.Array, position: jax.Array) -> "LayerCache":
        """The cache after adding keys and values [B, 1, K, H] of one token at `position` int32[B]."""
        row, slot = jnp.arange(k.shape[0]), position % self.keys.shape[1]
        return LayerCache(self.keys.at[row, slot].set(k[:, 0]), self.values.at[row, slot].set(v[:, 0]))


jax.tree_util.register_dataclass(LayerCache)

Cache = dict[str, tuple[LayerCache, ...]]
"""`periods` (leaves with a leading period axis) and `tail`, as in the model; one `LayerCache` per layer."""


@functools.partial(jax.jit, static_argnames="capacity")
def prefill(
    model: Maverick, tokens: jax.Array, lengths: jax.Array, capacity: int, tiles: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """Logits float32[B, V] after each prompt, and the cache.

    tokens: int32[B, T], each row a prompt followed by padding; lengths: int32[B], prompt lengths; capacity: maximum
    number of positions of prompt and answer together; tiles: as in `Inputs`. Raises InputError on a mesh whose
    devices share rows.
    """
    if (ways := row_split(tokens.shape[1], model.rules).ways) > 1:
        raise InputError(f"generation: {ways} devices of the mesh share rows; expected an axis context of 1")
    tokens, lengths = reshard(tokens, model.rules("batch", "length")), reshard(lengths, model.rules("batch"))
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    real = index < lengths[:, None]
    positions = jnp.where(real, index, 0)
    inputs = Inputs(tokens, positions, real.astype(jnp.int32), tiles)
    placed = Positions.of(model.config, inputs, model.rules)

    def prefill_attention(attention: Attention, x: jax.Array, _: None) -> tuple[jax.Array, LayerCache]:
        q, k, v = attention.project(x, placed)
        y = attend(q, k, v, attention.mask, placed, model.rules)
        slots = min(attention.mask.size or capacity, capacity)
        return attention.output(y), _newest(k, v, lengths, slots, model.rules)

    x, cache = _through_layers(model, model.embed_inputs(inputs), real, prefill_attention, None)
    last = index == lengths[:, None] - 1
    return _logits(model, jnp.sum(jnp.where(last[..., None], x, 0), axis=1, keepdims=True)), cache


@functools.partial(jax.jit, donate_argnames="cache")
def decode(model: Maverick, tokens: jax.Array, positions: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Logits float32[B, V] after one more token of each row, and the updated cache. `tokens` and their `positions` are
    int32[B]."""
    tokens, positions = (reshard(x, model.rules("batch")) for x in (tokens, positions))
    inputs = Inputs(tokens[:, None], positions[:, None], jnp.ones_like(positions)[:, None])
    placed = Positions.of(model.config, inputs, model.rules)

    def decode_attention(attention: Attention, x: jax.Array, kept: LayerCache) -> tuple[jax.Array, LayerCache]:
        q, k, v = attention.project(x, placed)
        y, kept = _attend_cached(q, k, v, attention.mask, placed.segments, kept, model.rules)
        return attention.output(y), kept

    x, cache = _through_layers(model, model.embed_inputs(inputs), None, decode_attention, cache)
    return _logits(model, x), cache


AttentionStep = Callable[[Attention, jax.Array, Any], tuple[jax.Array, LayerCache]]


def _through_layers(model: Maverick, x, real, step: AttentionStep, cache: Cache | None) -> tuple[jax.Array, Cache]:
    """Runs all layers of the model; `step` computes their attention. Returns hidden states before the norm."""
    new = {}
    if num_stages() > 1:
        raise InputError("mesh.pipeline: generation runs without a pipeline; expected 1")
    if (factor := model.config.expert_capacity_factor) is not None:
        raise InputError(f"model.expert_capacity_factor: {factor:g} drops tokens, generation does not; expected null")
    if model.config.num_periods:
        one_period = lambda x, part: _through_period(part[0], x, real, step, part[1])
        x, new[PERIODS] = jax.lax.scan(one_period, x, (model.periods, cache and cache[PERIODS]))
    if model.config.tail:
        x, new[TAIL] = _through_period(model.tail, x, real, step, cache and cache[TAIL])
    return x, new


def _through_period(period: Period, x, real, step: AttentionStep, cache):
    new = []
    for i, layer in enumerate(period.layers):
        y, kept = step(layer.attention, layer.attention_input(x), cache and cache[i])
        x, _ = layer.feed_forward(x + y, real)
        new.append(kept)
    return x, tuple(new)


def _logits(model: Maverick, x: jax.Array) -> jax.Array:
    """Logits float32[B, V] of hidden states [B, 1, D], replicated, because sampling sorts the whole vocabulary."""
    x = rms_norm(x, model.norm[...], model.config.rms_norm_eps)
    logits = jnp.einsum("BTD,DV->BTV", x, model.output_weight())[:, 0].astype(jnp.float32)
    return reshard(logits, PartitionSpec(None, None))


# ---- on each device's own sequences and heads ----------------------------------------------------------------------


def _newest(k, v, lengths, slots: int, rules: ShardingRules) -> LayerCache:
    """The ring buffer of keys and values [B, T, K, H] after `lengths` positions."""

    def local(k, v, lengths):
        index = jnp.clip(held_positions(lengths - 1, slots), 0, k.shape[1] - 1)[:, :, None, None]
        return LayerCache(*(jnp.take_along_axis(x, index, axis=1) for x in (k, v)))

    kept = rules("batch", None, "kv_heads", None)
    k, v = (reshard(x, kept) for x in (k, v))
    return jax.shard_map(local, in_specs=(kept, kept, rules("batch")), out_specs=LayerCache(kept, kept))(k, v, lengths)


def _attend_cached(q, k, v, mask: MaskSpec, at: Segments, cache: LayerCache, rules: ShardingRules):
    """Attention of one token to the cached keys and to itself, [B, 1, N, H], and the cache with the token."""

    def local(q, k, v, at, cache):
        position = at.positions[:, 0]
        cache = cache.with_token(k, v, position)
        y = attention_over(q, cache.keys, cache.values, mask, at, cache.segments(position))
        return y, cache

    heads, kv_heads = rules("batch", None, "heads", None), rules("batch", None, "kv_heads", None)
    token, kept = rules("batch", None), LayerCache(kv_heads, kv_heads)
    in_specs, out_specs = (heads, kv_heads, kv_heads, Segments(token, token), kept), (heads, kept)
    q, k, v = reshard(q, heads), reshard(k, kv_heads), reshard(v, kv_heads)
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)(q, k, v, at, cache)

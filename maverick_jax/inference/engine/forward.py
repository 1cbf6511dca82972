"""The forward pass over slots with cached keys and values: pieces of prompts, or the next token of all slots.

Keys and values are written where they stay, so that no program copies a slot. A layer with local attention keeps a ring
of `attention_chunk_size` positions, the others every position.

B slots, P texts whose pieces are computed together, T tokens of a piece, S kept positions, L periods.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.marks import KeptMarks, attend_kept, of_pieces
from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Layer
from maverick_jax.model.loops import again, stretches
from maverick_jax.model.norm import rms_norm
from maverick_jax.model.reasoning_heads import MarkedAttention
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.attention import MaskSpec, Segments, attention_over, attention_to_kept, held_positions
from maverick_jax.ops.dot import dot
from maverick_jax.ops.row_split import row_split
from maverick_jax.ops.stages import num_stages
from maverick_jax.sharding import ShardingRules
from maverick_jax.stack import PERIODS, TAIL


@dataclasses.dataclass(frozen=True)
class SlotKeys:
    """Keys and values of one layer in all slots, [B, K, S, H]. Place p mod S contains position p."""

    keys: jax.Array
    values: jax.Array
    marked: dict[str, "SlotKeys"] = dataclasses.field(default_factory=dict)
    """By group of reasoning heads: their keys and values of marked tokens, [B, 1, C, H]."""

    @property
    def own(self) -> "SlotKeys":
        """Those of the layer's attention alone."""
        return SlotKeys(self.keys, self.values)


jax.tree_util.register_dataclass(SlotKeys)

SlotCache = Any
"""The `SlotKeys` of all layers, in the order of `Unrolled` or of `Scanned`; of a layer that repeats, one each time."""
AttentionStep = Callable[[Layer, jax.Array, SlotKeys], tuple[jax.Array, SlotKeys]]
"""Computes a layer's attention, [P, T, D], and its cache."""


class Unrolled(NamedTuple):
    """A model whose layers are arrays of their own: a scan over stacked layers would copy each before it is used."""

    rest: Maverick
    """The model without its layers."""
    layers: tuple[Layer, ...]

    @property
    def config(self) -> ModelConfig:
        return self.rest.config

    @classmethod
    def of(cls, model: Maverick) -> "Unrolled":
        """Copies the layers; `maverick_jax.pretrained.load_layers` reads a model in this form. Raises InputError for a
        model that writes no text."""
        require_writing(model)
        rest, layers = copy.copy(model), []
        if model.config.num_periods:
            for i in range(model.config.num_periods):
                layers += jax.tree.map(lambda leaf, i=i: leaf[i], model.periods).layers
            delattr(rest, PERIODS)
        if model.config.tail:
            layers += model.tail.layers
            delattr(rest, TAIL)
        return cls(rest, tuple(layers))

    def through(self, x, real, cache: SlotCache, attend: AttentionStep) -> tuple[jax.Array, SlotCache]:
        loops, size = self.config.loops, len(self.config.period)
        if loops is None:
            return _through(self.layers, x, real, cache, attend)
        new, entered = [], None
        for number, kept in zip(self.config.visits, cache, strict=True):
            if number == loops.periods[0] * size:
                x, entered = (x, x) if entered is None else (again(x, entered, self.rest.loop_gain), entered)
            x, found = _through([self.layers[number]], x, real, [kept], attend)
            new += found
        return x, tuple(new)

    def caches(self, make: Callable[[Layer, tuple[int, ...]], SlotKeys]) -> SlotCache:
        return tuple(make(self.layers[number], ()) for number in self.config.visits)


class Scanned(NamedTuple):
    """A model as it is trained: no layer is copied beforehand, and one period is compiled however many there are."""

    rest: Maverick
    """The model."""

    @classmethod
    def of(cls, model: Maverick) -> "Scanned":
        """Raises InputError for a model that writes no text."""
        require_writing(model)
        return cls(model)

    def through(self, x, real, cache: SlotCache, attend: AttentionStep) -> tuple[jax.Array, SlotCache]:
        new = {}
        if self.rest.config.num_periods:
            one = lambda x, part: _through(part[0].layers, x, real, part[1], attend)
            x, new[PERIODS] = self._through_periods(x, one, cache[PERIODS])
        if self.rest.config.tail:
            x, new[TAIL] = _through(self.rest.tail.layers, x, real, cache[TAIL], attend)
        return x, new

    def _through_periods(self, x, one, cache: SlotCache) -> tuple[jax.Array, SlotCache]:
        """x through the periods, those that repeat each time with keys of their own."""
        new, entered, at, loops = [], None, 0, self.rest.config.loops
        for first, end in stretches(self.rest.config):
            if loops is not None and (first, end) == loops.periods:
                x, entered = (x, x) if entered is None else (again(x, entered, self.rest.loop_gain), entered)
            cut = lambda tree, low, high: jax.tree.map(lambda leaf: leaf[low:high], tree)
            x, found = jax.lax.scan(one, x, (cut(self.rest.periods, first, end), cut(cache, at, at + end - first)))
            new.append(found)
            at += end - first
        return x, new[0] if len(new) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *new)

    def caches(self, make: Callable[[Layer, tuple[int, ...]], SlotKeys]) -> SlotCache:
        config, found = self.rest.config, {}
        if config.num_periods:
            runs = len(config.period_visits)
            found[PERIODS] = tuple(make(layer, (runs,)) for layer in self.rest.periods.layers)
        if config.tail:
            found[TAIL] = tuple(make(layer, ()) for layer in self.rest.tail.layers)
        return found


def _through(layers: Iterable[Layer], x, real, cache: Iterable[SlotKeys], attend: AttentionStep):
    """x [P, T, D] through layers, and their caches."""
    new = []
    for i, (layer, kept) in enumerate(zip(layers, cache, strict=True)):
        with jax.named_scope(f"layer_{i}"):
            y, kept = attend(layer, layer.attention_input(x), kept)
            x, _ = layer.feed_forward(x + y, real)
        new.append(kept)
    return x, tuple(new)


def require_writing(model: Maverick) -> None:
    """Raises InputError for a model or a mesh in use that writes no text."""
    if (factor := model.config.expert_capacity_factor) is not None:
        raise InputError(f"model.expert_capacity_factor: {factor:g} drops tokens, generation does not; expected null")
    if model.config.reasoning_heads and model.config.reasoning_heads.scratch_heads:
        raise InputError(
            "model.reasoning_heads.scratch_heads: generation does not mark the thoughts that it writes; expected 0"
        )
    if num_stages() > 1:
        raise InputError("mesh.pipeline: generation runs without a pipeline; expected 1")
    if (ways := row_split(1, model.rules).ways) > 1:
        raise InputError(f"generation: {ways} devices of the mesh share rows; expected an axis context of 1")


def cache_spec(rules: ShardingRules) -> PartitionSpec:
    return rules("batch", "kv_heads", None, None)


def empty_cache(model: Unrolled | Scanned, slots: int, context: int) -> SlotCache:
    """A cache of zeros for texts of up to `context` tokens, split over the mesh in use."""
    config, spec = model.rest.config, cache_spec(model.rest.rules)

    def zeros(layer: Layer, leading: tuple[int, ...]) -> SlotKeys:
        kept = min(layer.attention.mask.size or context, context)
        one = lambda heads, kept, spec: SlotKeys(*(
            jnp.zeros((*leading, slots, heads, kept, config.head_dim), config.compute_dtype,
                      out_sharding=PartitionSpec(*[None] * len(leading), *spec))
            for _ in range(2)))  # fmt: skip
        found = one(config.num_key_value_heads, kept, spec)
        if not layer.spec.reasoning or config.reasoning_heads is None:
            return found
        same = model.rest.rules("batch", None, None, None)
        marked = {group.name: one(1, min(group.tokens, context), same) for group in config.reasoning_heads.groups}
        return dataclasses.replace(found, marked=marked)

    return model.caches(zeros)


class PromptPieces(NamedTuple):
    """Consecutive tokens of P texts. Those of a text must lie in one chunk of local attention."""

    tokens: jax.Array
    """int32[P, T], padded."""
    start: jax.Array
    """int32[P]: position of the first token."""
    count: jax.Array
    """int32[P]: number of tokens."""
    slot: jax.Array | None = None
    """int32[P], one text per group of devices along the batch axes: its slot among those of the group; B/P for no text.
    None: the texts are those of all slots, in order."""
    shown: jax.Array | None = None
    """bool[P, T]: tokens that pictures take the place of; None: there are no pictures."""
    features: jax.Array | None = None
    """[P, T, D]: those of the pictures, where they are shown."""
    marks: jax.Array | None = None
    """uint8[P, T]: what the tokens are to reasoning heads; None: no token is marked."""
    seen: jax.Array | None = None
    """int32[P, G]: how many earlier tokens each group of reasoning heads sees; None: there are no such heads."""


def through_piece(
    model: Unrolled | Scanned, cache: SlotCache, piece: PromptPieces, before: jax.Array | None = None
) -> tuple[jax.Array, SlotCache, jax.Array | None]:
    """Hidden states [P, T, D] of the residual stream, before the last norm; the cache with the pieces' keys; and
    `PromptPieces.seen` after them. `before` [P, D]: the hidden state before each piece, after the final norm, which a
    piece that begins with a latent thought reads; latents elsewhere are not computed."""
    rules = model.rest.rules
    tokens = reshard(piece.tokens, rules("batch", "length"))
    slot = () if piece.slot is None else (piece.slot,)
    start, count, *slot = (reshard(x, rules("batch")) for x in (piece.start, piece.count, *slot))
    index = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :]
    real = index < count[:, None]
    positions = jnp.where(real, start[:, None] + index, 0)
    inputs = Inputs(tokens, positions, real.astype(jnp.int32))
    placed = Positions.of(model.rest.config, inputs, rules)
    last = start + count - 1
    where, after = _marks_of(model, piece.marks, piece.seen, real)

    def attend(layer: Layer, x: jax.Array, kept: SlotKeys) -> tuple[jax.Array, SlotKeys]:
        q, k, v = layer.attention.project(x, placed)
        at = (start, last, *slot)
        y, own = _attend_piece(q, k, v, layer.attention.mask, placed.segments, at, kept.own, rules)
        return _with_marked(layer, x, layer.attention.output(y), own, kept, where, piece.slot)

    x = model.rest.embed_inputs(inputs)
    if before is not None and (latent := model.rest.config.latent):
        spec = jax.typeof(x).sharding.spec
        z = reshard(model.rest.latent(before[:, None], model.rest.embed[...]), PartitionSpec(spec[0], None, spec[2]))
        is_latent = reshard((tokens == latent.token_id) & (index == 0), PartitionSpec(*spec[:2]))
        x = jnp.where(is_latent[..., None], z, x)
    if piece.shown is not None:
        spec = jax.typeof(x).sharding.spec
        shown, features = (reshard(a, spec) for a in (piece.shown[..., None], piece.features))
        x = jnp.where(shown, features.astype(x.dtype), x)
    return *model.through(x, real, cache, attend), after


def _marks_of(model: Unrolled | Scanned, marks, seen, real) -> tuple[dict[str, KeptMarks], jax.Array | None]:
    if seen is None:
        return {}, None
    rows = model.rest.rules("batch", None)
    marks, seen, real = (None if x is None else reshard(x, rows) for x in (marks, seen, real))
    return of_pieces(model.rest.config, marks, seen, real)


def _with_marked(layer: Layer, x, y, own: SlotKeys, kept: SlotKeys, where: dict[str, KeptMarks], slot):
    """y [P, T, D] with what the layer's reasoning heads add, and the layer's keys with those of marked tokens."""
    if not layer.spec.reasoning or not where:
        return y, dataclasses.replace(own, marked=kept.marked)
    new, added = {}, []
    for name, at in where.items():
        heads: MarkedAttention = getattr(layer.reasoning, name)
        q, k, v = heads.project(x)
        found, *pair = attend_kept(q, k, v, at, slot, kept.marked[name].keys, kept.marked[name].values, heads.rules)
        new[name] = SlotKeys(*pair)
        added.append(heads.output(found))
    return y + layer.reasoning.scaled(sum(added)), dataclasses.replace(own, marked=new)


def encoded(model: Unrolled | Scanned, pixels: jax.Array) -> jax.Array:
    """Features [N, P, D] of tiles [N, C, S, S], N a multiple of the groups of devices; the same on all devices."""
    return reshard(model.rest.vision(pixels), PartitionSpec())


def through_token(
    model: Unrolled | Scanned, cache: SlotCache, tokens, positions, active, seen: jax.Array | None = None
) -> tuple[jax.Array, SlotCache]:
    """Hidden states [B, 1, D], before the last norm, of one more token of each slot that is `active` bool[B], and the
    cache with its keys. `tokens` and `positions` are int32[B], split over the batch axes; `seen` as of
    `PromptPieces`, of the slots."""
    rules = model.rest.rules
    inputs = Inputs(tokens[:, None], positions[:, None], active.astype(jnp.int32)[:, None])
    placed = Positions.of(model.rest.config, inputs, rules)

    where, _ = _marks_of(model, None, seen, active[:, None])

    def attend(layer: Layer, x: jax.Array, kept: SlotKeys) -> tuple[jax.Array, SlotKeys]:
        q, k, v = layer.attention.project(x, placed)
        y, own = _attend_token(q, k, v, layer.attention.mask, placed.segments, kept.own, rules)
        return _with_marked(layer, x, layer.attention.output(y), own, kept, where, None)

    return model.through(model.rest.embed_inputs(inputs), active[:, None], cache, attend)


def logits_of(model: Unrolled | Scanned, x: jax.Array) -> jax.Array:
    """Logits float32[B, V] of hidden states [B, D] before the last norm; each row is whole on its device."""
    x = rms_norm(x[:, None], model.rest.norm[...], model.rest.config.rms_norm_eps)
    logits = dot(x, model.rest.output_weight(), (2,), (0,))
    return reshard(logits[:, 0], model.rest.rules("batch", None))


# ---- on each device's own slots and heads --------------------------------------------------------------------------


def _attend_piece(q, k, v, mask: MaskSpec, at: Segments, where, kept: SlotKeys, rules: ShardingRules):
    """Attention of pieces to the kept keys and to themselves, [P, T, N, H], and the keys with theirs. `where` is the
    first position of each, its last position and, where `PromptPieces` has it, its slot, int32[P] each."""

    def local(q, k, v, at, first, last, *rest):
        *slot, kept = rest
        S, slots = kept.keys.shape[2], slot[0] if slot else jnp.arange(kept.keys.shape[0])
        place = jnp.where(at.segment_ids > 0, at.positions % S, S)
        put = lambda x, new, place: x.at[slots[:, None], :, place].set(new, mode="drop")
        own = lambda x: jax.lax.dynamic_slice_in_dim(x, slots[0], 1, axis=0) if slot else x
        if mask.window is None:  # what the pieces overwrite lies in an earlier chunk
            kept = SlotKeys(put(kept.keys, k, place), put(kept.values, v, place))
            return attention_to_kept(q, own(kept.keys), own(kept.values), mask, at, last), kept
        held = held_positions(first - 1, S)
        joined = lambda old, new: jnp.concatenate([own(old).transpose(0, 2, 1, 3), new], axis=1)
        keys, values = joined(kept.keys, k), joined(kept.values, v)
        places = Segments(
            jnp.concatenate([held, at.positions], axis=1),
            jnp.concatenate([(held >= 0).astype(jnp.int32), at.segment_ids], axis=1),
        )
        y = attention_over(q, keys, values, mask, at, places)
        newest = jnp.where(at.positions > last[:, None] - S, place, S)
        return y, SlotKeys(put(kept.keys, k, newest), put(kept.values, v, newest))

    return _mapped(local, q, k, v, at, where, kept, rules)


def _attend_token(q, k, v, mask: MaskSpec, at: Segments, kept: SlotKeys, rules: ShardingRules):
    """Attention of one token of each slot to the kept keys and to itself, [B, 1, N, H], and the keys with its own."""

    def local(q, k, v, at, kept):
        b, _, S, _ = kept.keys.shape
        active, position = at.segment_ids[:, 0] > 0, at.positions[:, 0]
        place = jnp.where(active, position % S, S)
        put = lambda x, new: x.at[jnp.arange(b), :, place].set(new[:, 0], mode="drop")
        kept = SlotKeys(put(kept.keys, k), put(kept.values, v))
        last = jnp.where(active, position, -1)
        return attention_to_kept(q, kept.keys, kept.values, mask, at, last), kept

    return _mapped(local, q, k, v, at, (), kept, rules)


def _mapped(local, q, k, v, at: Segments, per_row: tuple, kept: SlotKeys, rules: ShardingRules):
    heads, kv_heads = rules("batch", None, "heads", None), rules("batch", None, "kv_heads", None)
    token, slots = rules("batch", None), SlotKeys(cache_spec(rules), cache_spec(rules))
    q, k, v = reshard(q, heads), reshard(k, kv_heads), reshard(v, kv_heads)
    at = jax.tree.map(lambda x: reshard(x, token), at)
    rows = tuple(rules("batch") for _ in per_row)
    specs = (heads, kv_heads, kv_heads, Segments(token, token), *rows, slots)
    return jax.shard_map(local, in_specs=specs, out_specs=(heads, slots))(q, k, v, at, *per_row, kept)

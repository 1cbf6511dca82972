"""The programs of an engine, compiled before it answers: prompts in pieces, steps of all slots, scores, kept texts.

B slots, V vocabulary, k steps of a dispatch, n likeliest tokens that are reported.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from maverick_jax.config import ModelConfig
from maverick_jax.inference.engine.beginnings import Beginning
from maverick_jax.inference.engine.forward import (
    PromptPieces,
    Scanned,
    SlotCache,
    SlotKeys,
    Unrolled,
    logits_of,
    through_piece,
    through_token,
)
from maverick_jax.inference.engine.marks import num_groups
from maverick_jax.inference.engine.requests import MAX_STOPS, MAX_TOP
from maverick_jax.model.norm import rms_norm
from maverick_jax.ops.draw import DrawRules, Written, draw
from maverick_jax.ops.slots import put_slot, take_slot
from maverick_jax.ops.token_scores import ScoredTokens, token_scores
from maverick_jax.sharding import ShardingRules


@dataclasses.dataclass(frozen=True)
class Slots:
    """What each of B slots holds beside keys and values."""

    logits: jax.Array
    """float32[B, V]: of the next token."""
    length: jax.Array
    """int32[B]: positions of the text so far."""
    limit: jax.Array
    """int32[B]: most tokens of the answer."""
    active: jax.Array
    """bool[B]: whether a token is drawn in the next step."""
    scored: jax.Array
    """bool[B]: whether log-probabilities are wanted."""
    stops: jax.Array
    """int32[B, MAX_STOPS]: tokens that end the answer; -1 for none."""
    rules: DrawRules
    written: Written
    hidden: jax.Array | None = None
    """[B, D]: the last hidden state of the prompt so far, after the final norm, which a latent thought that comes next
    reads; None: the model has none."""
    seen: jax.Array | None = None
    """int32[B, G]: how many tokens each group of reasoning heads sees; None: there are no such heads."""


jax.tree_util.register_dataclass(Slots)


class Steps(NamedTuple):
    """The tokens of k steps."""

    tokens: jax.Array
    """int32[k, B]; -1 where a slot was not active."""
    scores: ScoredTokens
    """[k, B]; undefined where no slot wants scores."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One slot's keys, values and logits, the same on all devices along the batch axes."""

    layers: tuple[SlotKeys, ...]
    """[K, S', H] each, S' at most the bucket of the text's length."""
    logits: jax.Array
    """float32[V]"""


jax.tree_util.register_dataclass(Snapshot)


def empty_slots(slots: int, config: ModelConfig, rules: ShardingRules) -> Slots:
    """Slots without texts, on the mesh in use."""
    vocab_size = config.vocab_size
    full = lambda value, dtype, *shape: jnp.full(
        (slots, *shape), value, dtype, out_sharding=rules("batch", *[None] * len(shape))
    )
    number, natural = functools.partial(full, dtype=jnp.float32), functools.partial(full, dtype=jnp.int32)
    return Slots(
        logits=full(0, jnp.float32, vocab_size),
        length=natural(0),
        limit=natural(0),
        active=full(False, bool),
        scored=full(False, bool),
        stops=full(-1, jnp.int32, MAX_STOPS),
        rules=DrawRules(
            temperature=number(0),
            top_k=natural(0),
            top_p=number(1),
            min_p=number(0),
            repetition=number(1),
            presence=number(0),
            frequency=number(0),
            seed=full(0, jnp.uint32),
            bias=full(0, jnp.float32, vocab_size),
        ),
        written=Written(full(False, bool, vocab_size), full(0, jnp.int32, vocab_size), natural(0)),
        hidden=full(0, config.compute_dtype, config.hidden_size) if config.latent else None,
        seen=full(0, jnp.int32, num_groups(config)) if config.reasoning_heads else None,
    )


def prefill(model: Unrolled | Scanned, cache: SlotCache, slots: Slots, piece: PromptPieces) -> tuple[SlotCache, Slots]:
    """Adds pieces of texts; `logits`, `length` and `hidden` of their slots are those after the pieces. A latent thought
    has a piece to itself."""
    rules = model.rest.rules
    before = None if slots.hidden is None else _rows_of(slots.hidden, piece, rules)
    x, cache, seen = through_piece(model, cache, piece, before)
    end = piece.start + piece.count
    last = jnp.arange(piece.tokens.shape[1], dtype=jnp.int32)[None, :] == piece.count[:, None] - 1
    x = reshard(x, rules("batch", "length", None))
    last = reshard(last, rules("batch", "length"))
    newest = jnp.sum(jnp.where(last[..., None], x, 0), axis=1)
    put = functools.partial(_put_rows, piece=piece, rules=rules)
    if slots.hidden is not None:
        normal = rms_norm(newest[:, None], model.rest.norm[...], model.rest.config.rms_norm_eps)[:, 0]
        slots = dataclasses.replace(slots, hidden=put(slots.hidden, normal))
    if seen is not None:
        slots = dataclasses.replace(slots, seen=put(slots.seen, seen))
    logits = logits_of(model, newest)
    return cache, dataclasses.replace(slots, logits=put(slots.logits, logits), length=put(slots.length, end))


def _rows_of(x: jax.Array, piece: PromptPieces, rules: ShardingRules) -> jax.Array:
    """The rows [P, D] of x [B, D] in the slots of the pieces."""
    if piece.slot is None:
        return x
    spec = rules("batch", None)
    local = lambda x, slot: jnp.take(x, slot, axis=0, mode="clip")
    return jax.shard_map(local, in_specs=(spec, rules("batch")), out_specs=spec)(x, reshard(piece.slot, rules("batch")))


def _put_rows(x: jax.Array, new: jax.Array, *, piece: PromptPieces, rules: ShardingRules) -> jax.Array:
    """x [B, ...] with the rows of `new` [P, ...] in the slots of the pieces."""
    spec = rules("batch", *[None] * (x.ndim - 1))
    new = reshard(new, spec)
    if piece.slot is None:
        some = reshard(piece.count > 0, rules("batch"))
        return jnp.where(jnp.expand_dims(some, range(1, x.ndim)), new, x)
    local = lambda x, new, slot: x.at[slot[0]].set(new[0], mode="drop")
    specs = (spec, spec, rules("batch"))
    return jax.shard_map(local, in_specs=specs, out_specs=spec)(x, new, reshard(piece.slot, rules("batch")))


def score(model: Unrolled, cache: SlotCache, piece: PromptPieces, labels: jax.Array) -> tuple[SlotCache, ScoredTokens]:
    """Adds a piece of each group's text; scores `labels` int32[P, T], the token after each of the piece."""
    rules = model.rest.rules
    x, cache, _ = through_piece(model, cache, piece)
    x = rms_norm(x, model.rest.norm[...], model.rest.config.rms_norm_eps)
    x, labels = reshard(x, rules("batch", "length", None)), reshard(labels, rules("batch", "length"))
    return cache, token_scores(x, model.rest.output_weight(), labels, _top_of(model), rules=rules)


def _top_of(model: Unrolled | Scanned) -> int:
    return min(MAX_TOP, model.rest.config.vocab_size)


def decode(model: Unrolled | Scanned, cache: SlotCache, slots: Slots, count: int) -> tuple[SlotCache, Slots, Steps]:
    """`count` steps: each draws a token of every active slot, and computes the logits after it."""

    def step(carry: tuple[SlotCache, Slots], _: None) -> tuple[tuple[SlotCache, Slots], Steps]:
        cache, slots = carry
        drawn, steps = next_tokens(model, slots)
        tokens = jnp.maximum(steps.tokens, 0)
        x, cache = through_token(model, cache, tokens, slots.length, slots.active, slots.seen)
        return (cache, dataclasses.replace(drawn, logits=logits_of(model, x[:, 0]))), steps

    if count == 1:
        carry, steps = step((cache, slots), None)
        return *carry, jax.tree.map(lambda x: x[None], steps)
    carry, steps = jax.lax.scan(step, (cache, slots), length=count)
    return *carry, steps


def next_tokens(model: Unrolled | Scanned, slots: Slots) -> tuple[Slots, Steps]:
    """Draws the next token of every active slot; `logits` stay those before it, and the arrays of `Steps` are [B]."""
    rules = model.rest.rules
    batch = jax.tree.map(lambda x: rules("batch", *[None] * (x.ndim - 1)), slots)
    local = functools.partial(_next_tokens, top=_top_of(model))
    return jax.shard_map(local, in_specs=(batch,), out_specs=(batch, rules("batch")))(slots)


def _next_tokens(slots: Slots, *, top: int) -> tuple[Slots, Steps]:
    """Draws the next tokens [B] of one device's slots. A slot is active until it has written a stop or its limit."""
    tokens, rows = draw(slots.logits, slots.rules, slots.written), jnp.arange(slots.length.shape[0])
    nothing = ScoredTokens(
        jnp.zeros_like(slots.rules.temperature),
        jnp.zeros_like(slots.stops, shape=(len(rows), top)),
        jnp.zeros_like(slots.logits, shape=(len(rows), top)),
    )
    scores = jax.lax.cond(
        jnp.any(slots.scored & slots.active),
        lambda logits, tokens: _scores(logits, tokens, top),
        lambda logits, tokens: nothing,
        slots.logits,
        tokens,
    )
    more = slots.active.astype(jnp.int32)
    counts = slots.written.counts.at[rows, tokens].add(more)
    length = slots.written.length + more
    ended = jnp.any(tokens[:, None] == slots.stops, axis=1) | (length >= slots.limit)
    written = dataclasses.replace(slots.written, counts=counts, length=length)
    new = dataclasses.replace(slots, written=written, length=slots.length + more, active=slots.active & ~ended)
    return new, Steps(jnp.where(slots.active, tokens, -1), scores)


def _scores(logits: jax.Array, tokens: jax.Array, top: int) -> ScoredTokens:
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    best, ids = jax.lax.top_k(log_probs, top)
    return ScoredTokens(jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0], ids, best)


def begin(slots: Slots, slot: jax.Array, first: Beginning, rules: ShardingRules) -> Slots:
    """The answer of `slot` begins with its next step, after a prompt that has been computed."""
    put = lambda x, entry: put_slot(x, entry, slot, rules)
    return dataclasses.replace(
        slots,
        limit=put(slots.limit, first.limit),
        active=put(slots.active, jnp.ones((), bool)),
        scored=put(slots.scored, first.scored),
        stops=put(slots.stops, first.stops),
        rules=jax.tree.map(put, slots.rules, first.rules),
        written=jax.tree.map(put, slots.written, first.written),
    )


def stop(slots: Slots, ended: jax.Array, rules: ShardingRules) -> Slots:
    """No more tokens in the slots `ended` bool[B]."""
    return dataclasses.replace(slots, active=slots.active & ~reshard(ended, rules("batch")))


def restrict(slots: Slots, slot: jax.Array, bias: jax.Array, rules: ShardingRules) -> Slots:
    """The next token of `slot` is drawn with `bias` float32[V]."""
    return dataclasses.replace(
        slots, rules=dataclasses.replace(slots.rules, bias=put_slot(slots.rules.bias, bias, slot, rules))
    )


def snapshot(cache: SlotCache, slots: Slots, slot: jax.Array, length: int, rules: ShardingRules) -> Snapshot:
    """A copy of `slot`, whose text has at most `length` tokens."""
    taken = lambda x: take_slot(x, slot, rules, (x.shape[1], min(length, x.shape[2]), x.shape[3]))
    return Snapshot(jax.tree.map(taken, cache), take_slot(slots.logits, slot, rules))


def restore(
    cache: SlotCache,
    slots: Slots,
    slot: jax.Array,
    kept: Snapshot,
    length: jax.Array,
    seen: jax.Array | None,
    rules: ShardingRules,
) -> tuple[SlotCache, Slots]:
    """`slot` with the text of `kept`, of `length` tokens, of which each group of reasoning heads sees `seen`
    int32[G]."""
    put = lambda x, entry: put_slot(x, entry, slot, rules)
    new = {"logits": put(slots.logits, kept.logits), "length": put(slots.length, length)}
    new |= {} if slots.seen is None else {"seen": put(slots.seen, seen)}
    return jax.tree.map(put, cache, kept.layers), dataclasses.replace(slots, **new)

"""Draws each row's next token by rules of its own, without sorting the vocabulary.

A row's token depends on its logits, its rules and its key alone: not on its place among the rows, nor on the others.
B rows, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class DrawRules:
    """How each of B rows draws; `maverick_jax.inference.sampling.Sampling` says what the fields mean."""

    temperature: jax.Array
    """float32[B]"""
    top_k: jax.Array
    """int32[B]"""
    top_p: jax.Array
    """float32[B]"""
    min_p: jax.Array
    """float32[B]"""
    repetition: jax.Array
    """float32[B]"""
    presence: jax.Array
    """float32[B]"""
    frequency: jax.Array
    """float32[B]"""
    seed: jax.Array
    """uint32[B]"""
    bias: jax.Array
    """float32[B, V]: added to logits; -inf forbids a token."""


@dataclasses.dataclass(frozen=True)
class Written:
    """What is in each of B rows' texts."""

    prompt: jax.Array
    """bool[B, V]: tokens of the prompt."""
    counts: jax.Array
    """int32[B, V]: how many times each token is in the answer."""
    length: jax.Array
    """int32[B]: tokens of the answer."""


jax.tree_util.register_dataclass(DrawRules)
jax.tree_util.register_dataclass(Written)


def draw(logits: jax.Array, rules: DrawRules, written: Written) -> jax.Array:
    """int32[B]: the next token after logits float32[B, V]. Token i of an answer is drawn with the key of (seed, i)."""
    logits = lax.cond(_any_changes(rules), _changed, lambda logits, rules, written: logits, logits, rules, written)
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def drawn(logits, rules, length):
        scaled = logits / jnp.where(rules.temperature > 0, rules.temperature, 1.0)[:, None]
        kept = lax.cond(_any_excluded(rules), _restricted, lambda scaled, rules: scaled, scaled, rules)
        key = jax.vmap(lambda seed, i: jax.random.fold_in(jax.random.key(seed), i))(rules.seed, length)
        return jax.vmap(jax.random.categorical)(key, kept).astype(jnp.int32)

    some = jnp.any(rules.temperature > 0)
    sampled = lax.cond(some, drawn, lambda logits, rules, length: greedy, logits, rules, written.length)
    return jnp.where(rules.temperature > 0, sampled, greedy)


def _any_changes(rules: DrawRules) -> jax.Array:
    penalties = (rules.repetition != 1) | (rules.presence != 0) | (rules.frequency != 0)
    return jnp.any(penalties) | jnp.any(rules.bias != 0)


def _changed(logits: jax.Array, rules: DrawRules, written: Written) -> jax.Array:
    """Logits with bias and penalties."""
    logits = logits + rules.bias
    seen, again = written.prompt | (written.counts > 0), rules.repetition[:, None]
    logits = jnp.where(seen, jnp.where(logits > 0, logits / again, logits * again), logits)
    counts = written.counts.astype(jnp.float32)
    return logits - rules.presence[:, None] * jnp.minimum(counts, 1) - rules.frequency[:, None] * counts


def _any_excluded(rules: DrawRules) -> jax.Array:
    return jnp.any((rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0))


def _restricted(logits: jax.Array, rules: DrawRules) -> jax.Array:
    """Logits with -inf for excluded tokens. Tokens with equal logits stay or go together.

    The least logits that top_k and top_p keep are found bit by bit, as whole numbers of the same order: 32 passes over
    the logits, where a sort would take more."""
    V = logits.shape[-1]
    order, shares = _ordered(logits), jax.nn.softmax(logits, axis=-1)
    wanted = jnp.where(rules.top_k > 0, jnp.minimum(rules.top_k, V), V)

    def one_bit(i, least):
        bit = jnp.uint32(1) << (31 - i).astype(jnp.uint32)
        by_rank, by_share = (x | bit for x in least)
        count = jnp.sum(order >= by_rank[:, None], axis=-1, dtype=jnp.int32)
        share = jnp.sum(jnp.where(order >= by_share[:, None], shares, 0), axis=-1)
        keep = lambda enough, new, old: jnp.where(enough, new, old)
        return keep(count >= wanted, by_rank, least[0]), keep(share >= rules.top_p, by_share, least[1])

    none = jnp.zeros_like(rules.seed)
    by_rank, by_share = lax.fori_loop(0, 32, one_bit, (none, none))
    by_share = jnp.where(rules.top_p < 1, by_share, none)
    least = jnp.max(logits, axis=-1) + jnp.log(rules.min_p)  # -inf if min_p is 0
    kept = (order >= jnp.maximum(by_rank, by_share)[:, None]) & (logits >= least[:, None])
    return jnp.where(kept, logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of float32 x."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))

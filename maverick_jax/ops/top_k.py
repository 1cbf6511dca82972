"""The top k of a model's distribution and its tail, straight from hidden states and output matrix, in chunks of rows.

The vocabulary may be split over the tensor axis: devices exchange the top k of their shards, never logits, and no array
of [rows, V] ever exists.

c rows per chunk, D model, v vocabulary entries on this device, n shards of the vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from maverick_jax.ops.collectives import vary
from maverick_jax.ops.dot import dot
from maverick_jax.ops.vocabulary import chunks, first_token, gather, log_sum_exp, places, unchunked
from maverick_jax.sharding import ShardingRules, axes_tuple

LOGITS_PER_CHUNK = 1 << 21  # float32 elements; a chunk holds a few arrays of this size


class TopTokens(NamedTuple):
    """Each token's distribution, at the requested temperature unless the field names another."""

    ids: jax.Array
    """int32[B, T, k]: the most likely tokens, in descending order; the smaller id comes first in a tie."""
    log_probs: jax.Array
    """float32[B, T, k]"""
    log_tail: jax.Array
    """float32[B, T]: log of the total probability of all other tokens; -inf if there are none."""
    log_normaliser: jax.Array
    """float32[B, T]: logsumexp of logits / temperature."""
    label_log_prob: jax.Array
    """float32[B, T], at temperature 1."""
    entropy: jax.Array
    """float32[B, T], nats, at temperature 1."""
    sample_ids: jax.Array
    """int32[B, T, s]: drawn from the other tokens in proportion to their probability, with replacement."""
    sample_log_probs: jax.Array
    """float32[B, T, s]: log-probabilities in the whole distribution."""


def top_k(
    hidden, head, labels, uniforms, *, k: int, temperature: float, rules: ShardingRules, chunk: int | None = None
) -> TopTokens:
    """The `k` most likely of V tokens, and s samples of the others.

    hidden [B, T, D]; head [D, V] in the same dtype; labels int32[B, T], where ~t means t; uniforms float32[B, T, s] in
    [0, 1). Each uniform picks the token at its place in the cumulative distribution of the tail, so that equal numbers
    draw equal tokens on every mesh, up to rounding. s > 0 requires a tail: k < V.
    """
    batch_axes, vocab_axes = rules.tokens, axes_tuple(rules.vocab)

    def local(hidden, head, labels, uniforms):
        v, shape = head.shape[1], labels.shape
        hidden, head = vary(hidden, vocab_axes), vary(head, batch_axes)
        rows = min(chunk or max(64, LOGITS_PER_CHUNK // v), labels.size)
        flat = [x.reshape(labels.size, *x.shape[2:]) for x in (hidden, labels, uniforms)]
        found = lax.map(lambda chunk: _chunk(vocab_axes, k, temperature, head, *chunk), chunks(rows, *flat))
        return jax.tree.map(lambda x: unchunked(x, labels.size).reshape(*shape, *x.shape[2:]), found)

    tokens = rules.storage("batch", "length")
    specs = (tokens, rules.compute("embed", "vocab"), tokens, tokens)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens)(hidden, head, labels, uniforms)


def top_k_reference(hidden, head, labels, uniforms, *, k: int, temperature: float) -> TopTokens:
    """The slow twin, on whole logits. Arguments and result as `top_k`."""
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    plain, log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits / temperature)
    top, ids = lax.top_k(log_probs, k)
    is_top = jnp.any(jax.nn.one_hot(ids, logits.shape[-1], dtype=bool), axis=-2)
    tail = jnp.where(is_top, 0, jnp.exp(log_probs))
    reached = jnp.cumsum(tail, axis=-1)
    samples = jnp.sum(reached[..., None, :] <= (uniforms * reached[..., -1:])[..., None], axis=-1, dtype=jnp.int32)
    of = lambda logp, ids: jnp.take_along_axis(logp, ids, axis=-1)
    return TopTokens(
        ids,
        top,
        jnp.log(jnp.sum(tail, axis=-1)),
        jax.nn.logsumexp(logits / temperature, axis=-1),
        of(plain, jnp.where(labels < 0, ~labels, labels)[..., None])[..., 0],
        -jnp.sum(jnp.exp(plain) * plain, axis=-1),
        samples,
        of(log_probs, samples),
    )


# ---- a chunk of rows on one device's shard of the vocabulary -------------------------------------------------------


def _chunk(axes, k, temperature, head, hidden, labels, uniforms) -> TopTokens:
    logits = dot(hidden, head, (1,), (0,))
    plain = logits - log_sum_exp(axes, logits)[:, None]
    label_log_prob = gather(axes, plain, jnp.where(labels < 0, ~labels, labels)[:, None])[:, 0]
    entropy = -lax.psum(jnp.sum(jnp.exp(plain) * plain, axis=-1), axes)
    logits = logits * (1 / temperature)
    normalizer = log_sum_exp(axes, logits)
    log_probs = logits - normalizer[:, None]
    top, ids = largest(axes, k, log_probs)
    rest = places(axes, log_probs, ids).set(-jnp.inf, mode="drop")
    tail = log_sum_exp(axes, rest)
    samples = _samples(axes, jnp.exp(rest - jnp.where(jnp.isfinite(tail), tail, 0)[:, None]), uniforms)
    sampled = gather(axes, log_probs, samples)
    return TopTokens(ids, top, tail, normalizer, label_log_prob, entropy, samples, sampled)


def largest(axes, k, log_probs):
    """The k largest of the whole vocabulary: (values, ids), each [c, k]."""
    c, v = log_probs.shape
    values, ids = lax.top_k(log_probs, min(k, v))
    ids = ids + first_token(axes, v)
    listed = lambda x: jnp.moveaxis(_gathered(axes, x), 0, 1).reshape(c, -1)  # in order of shards, so ties by id
    top, at = lax.top_k(listed(values), k)
    return top, jnp.take_along_axis(listed(ids), at, axis=1)


def _gathered(axes, x):
    """[n, ...]: x of all devices, with a type that is equal on every device of `axes` (an all-gather's is not)."""
    if not axes:
        return x[None]
    mine = jnp.arange(lax.axis_size(axes)) == lax.axis_index(axes)
    return lax.psum(jnp.where(mine.reshape(-1, *[1] * x.ndim), x[None], jnp.zeros_like(x)[None]), axes)


def _samples(axes, tail, uniforms):
    """Tokens [c, s] where `uniforms` [c, s] fall in the cumulative sum of the unnormalized masses `tail` [c, v]."""
    v = tail.shape[1]
    reached = jnp.cumsum(tail, axis=1)
    until = jnp.cumsum(_gathered(axes, reached[:, -1]), axis=0)  # [n, c]: mass up to the end of each shard
    below = lambda x: jnp.nextafter(x, jnp.zeros_like(x))
    target = jnp.minimum(uniforms * until[-1][:, None], below(until[-1])[:, None])
    part = jnp.sum(until[:, :, None] <= target[None], axis=0, dtype=jnp.int32)
    before = jnp.where(part > 0, jnp.take_along_axis(until.T, jnp.maximum(part - 1, 0), axis=1), 0)
    # rounding must never pick a token of mass 0, so the end of the cumulative sum is never reached
    target = jnp.minimum(target - before, below(reached[:, -1])[:, None])
    at = jax.vmap(lambda sums, x: jnp.searchsorted(sums, x, side="right"))(reached, target).astype(jnp.int32)
    mine = part == (lax.axis_index(axes) if axes else 0)
    return lax.psum(jnp.where(mine, jnp.minimum(at, v - 1) + first_token(axes, v), 0), axes)

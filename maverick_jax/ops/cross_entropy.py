"""Cross-entropy straight from hidden states and output matrix, in chunks of rows: no array of [rows, V] ever exists.

The gradient is computed in the same pass as the loss, while a chunk's logits are in memory (the idea of Liger and of
Cut Cross-Entropy, arXiv 2411.09009). The vocabulary may be split over the tensor axis.

n rows on this device, c rows per chunk, D model, v vocabulary entries on this device.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from maverick_jax.ops.collectives import gather_weight, use_sharded, vary
from maverick_jax.ops.dot import dot
from maverick_jax.ops.stream import gather_tokens, working
from maverick_jax.ops.vocabulary import chunks, is_token, log_sum_exp, times, unchunked
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.target import traced_platform

LOGITS_PER_CHUNK = 1 << 22  # float32 elements, 16 MiB: the fastest size on CPU
LEAST_ROWS = {"cpu": 128, "gpu": 1024, "tpu": 1024}
"""Least rows of a chunk, by platform. A chunk of c rows reads the output matrix and reads and writes its float32
gradient, 10 bytes for each 6 c FLOPs: an H200 computes 160 FLOPs in the time of a byte, so that 1024 rows are bound by
their products."""


def default_rows(v: int, platform: str) -> int:
    """Rows of a chunk unless they are chosen."""
    return max(LEAST_ROWS[platform], LOGITS_PER_CHUNK // v)


class CrossEntropy(NamedTuple):
    """The loss of a batch of B rows of T tokens, in nats."""

    total: jax.Array
    """float32[]: weighted sum, z-loss included."""
    nll: jax.Array
    """float32[]: weighted sum of -log p(label); no gradient."""
    per_token: jax.Array
    """float32[B, T]: -log p(label) of each token, unweighted; no gradient."""


def cross_entropy_reference(hidden, head, labels, weights, z_loss: float = 0.0):
    """The slow twin, on whole logits. Arguments and result as `cross_entropy`."""
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    lse = jax.nn.logsumexp(logits, axis=-1)
    nll = lse - jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return CrossEntropy(jnp.sum(weights * (nll + z_loss * lse**2)), jnp.sum(weights * nll), nll)


@jax.named_scope("loss")
def cross_entropy(
    hidden, head, labels, weights, *, rules: ShardingRules, z_loss: float = 0.0, chunk: int | None = None
) -> CrossEntropy:
    """Weighted sum over all tokens of -log p(label) + z_loss * logsumexp^2, its first term alone, and that per token.

    hidden [B, T, D] of the residual stream; head [D, V] of any dtype, as stored, gathered in hidden's; labels int32[B,
    T]; weights float32[B, T]. Computes `chunk` rows at a time. Results are float32, in nats; only the first carries a
    gradient. z-loss: PaLM, arXiv 2204.02311.
    """
    batch_axes = rules.tokens
    vocab_axes = axes_tuple(rules.vocab)

    def local(hidden, head, labels, weights):
        hidden, head = vary(hidden, vocab_axes), gather_weight(head, hidden.dtype, gathered, batch_axes)
        (D, v), shape = head.shape, labels.shape
        rows = chunk or default_rows(v, traced_platform())
        hidden, labels, weights = hidden.reshape(-1, D), labels.reshape(-1), weights.reshape(-1)
        found = _local(vocab_axes, z_loss, min(rows, labels.size), hidden, head, labels, weights)
        (total, nll), per_token = found  # pyright: ignore[reportGeneralTypeIssues] (custom_vjp hides the result's type)
        nll, per_token = lax.stop_gradient((nll, per_token.reshape(shape)))
        return lax.psum(total, batch_axes), lax.psum(nll, batch_axes), per_token

    hidden, tokens = working(gather_tokens(hidden, rules), vocab_axes), rules.storage("batch", "length")
    head, gathered = use_sharded(head, rules.compute("embed", "vocab"), batch_axes)
    specs = (*(jax.typeof(x).sharding.spec for x in (hidden, head)), tokens, tokens)
    nothing = rules.storage()
    labels, weights = (reshard(x, tokens) for x in (labels, weights))
    found = jax.shard_map(local, in_specs=specs, out_specs=(nothing, nothing, tokens))(hidden, head, labels, weights)
    return CrossEntropy(*found)


def _chunk_logits(vocab_axes, hidden, head, labels):
    """Logits [c, v], their logsumexp over the whole vocabulary [c], and a mask of the labels, bool[c, v]."""
    logits = dot(hidden, head, (1,), (0,))
    return logits, log_sum_exp(vocab_axes, logits), is_token(vocab_axes, labels, head.shape[1])


def _chunk_loss(vocab_axes, z_loss, logits, lse, is_label, weights):
    nll = lse - lax.psum(jnp.sum(jnp.where(is_label, logits, 0), axis=-1), vocab_axes)
    return (jnp.sum(weights * (nll + z_loss * lse**2)), jnp.sum(weights * nll)), nll


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _local(vocab_axes, z_loss, rows, hidden, head, labels, weights):
    def one(sums, chunk):
        hidden, labels, weights = chunk
        found = _chunk_logits(vocab_axes, hidden, head, labels)
        more, nll = _chunk_loss(vocab_axes, z_loss, *found, weights)
        return jax.tree.map(jnp.add, sums, more), nll

    zero = jnp.zeros_like(weights, shape=())
    sums, nll = lax.scan(one, (zero, zero), chunks(rows, hidden, labels, weights))
    return sums, unchunked(nll, labels.size)


def _forward(vocab_axes, z_loss, rows, hidden, head, labels, weights):
    def one(carry, chunk):
        sums, dhead = carry
        hidden, labels, weights = chunk
        logits, lse, is_label = _chunk_logits(vocab_axes, hidden, head, labels)
        more, nll = _chunk_loss(vocab_axes, z_loss, logits, lse, is_label, weights)
        sums = jax.tree.map(jnp.add, sums, more)
        probability = jnp.exp(logits - lse[:, None]) * (1 + 2 * z_loss * lse)[:, None]
        dlogits = (weights[:, None] * (probability - is_label.astype(jnp.float32))).astype(hidden.dtype)
        dhead += dot(hidden, dlogits, (0,), (0,))
        return (sums, dhead), (dot(dlogits, head, (1,), (1,)).astype(hidden.dtype), nll)

    zero = jnp.zeros_like(weights, shape=())
    init = ((zero, zero), jnp.zeros_like(head, dtype=jnp.float32))
    (sums, dhead), (dhidden, nll) = lax.scan(one, init, chunks(rows, hidden, labels, weights))
    return (sums, unchunked(nll, labels.size)), (unchunked(dhidden, labels.size), dhead)


def _backward(vocab_axes, z_loss, rows, saved, cotangents):
    (dhidden, dhead), scale = saved, cotangents[0][0]  # the other outputs are metrics
    return *times(scale, dhidden, dhead), None, None


_local.defvjp(_forward, _backward)

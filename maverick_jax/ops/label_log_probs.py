"""Log-probabilities of labels straight from hidden states and output matrix, in chunks of rows.

For losses that are no sum over tokens, such as those of pairs: the weight of a token's gradient is known only when the
whole sequence has been read, so that the backward pass computes a chunk's logits again. `ops.cross_entropy` needs only
one pass, because its weights are known before. The vocabulary may be split over the tensor axis.

n rows on this device, c rows per chunk, D model, v vocabulary entries on this device.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import reshard

from maverick_jax.ops.collectives import gather_weight, use_sharded, vary
from maverick_jax.ops.cross_entropy import default_rows
from maverick_jax.ops.dot import dot
from maverick_jax.ops.stream import gather_tokens, working
from maverick_jax.ops.vocabulary import chunks, is_token, log_sum_exp, unchunked
from maverick_jax.sharding import ShardingRules, axes_tuple
from maverick_jax.target import traced_platform


def label_log_probs_reference(hidden, head, labels):
    """The slow twin, on whole logits. Arguments and result as `label_log_probs`."""
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, preferred_element_type=jnp.float32)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


@jax.named_scope("log_probs")
def label_log_probs(hidden, head, labels, *, rules: ShardingRules, chunk: int | None = None) -> jax.Array:
    """log p(label), float32[B, T] in nats, of hidden [B, T, D] of the residual stream, head [D, V] of any dtype, as
    stored, and labels int32[B, T]. Computes `chunk` rows at a time."""
    batch_axes = rules.tokens
    vocab_axes = axes_tuple(rules.vocab)

    def local(hidden, head, labels):
        hidden, head = vary(hidden, vocab_axes), gather_weight(head, hidden.dtype, gathered, batch_axes)
        (D, v), shape = head.shape, labels.shape
        rows = min(chunk or default_rows(v, traced_platform()), labels.size)
        found = _local(vocab_axes, rows, hidden.reshape(-1, D), head, labels.reshape(-1))
        return found.reshape(shape)  # pyright: ignore[reportAttributeAccessIssue] (custom_vjp hides the type)

    hidden, tokens = working(gather_tokens(hidden, rules), vocab_axes), rules.storage("batch", "length")
    head, gathered = use_sharded(head, rules.compute("embed", "vocab"), batch_axes)
    specs = (*(jax.typeof(x).sharding.spec for x in (hidden, head)), tokens)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens)(hidden, head, reshard(labels, tokens))


def _logits(vocab_axes, hidden, head, labels):
    """Logits [c, v], their logsumexp over the whole vocabulary [c], and a mask of the labels, bool[c, v]."""
    logits = dot(hidden, head, (1,), (0,))
    return logits, log_sum_exp(vocab_axes, logits), is_token(vocab_axes, labels, head.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _local(vocab_axes, rows, hidden, head, labels):
    def one(_, chunk):
        logits, lse, is_label = _logits(vocab_axes, chunk[0], head, chunk[1])
        return None, lax.psum(jnp.sum(jnp.where(is_label, logits, 0), axis=-1), vocab_axes) - lse

    return unchunked(lax.scan(one, None, chunks(rows, hidden, labels))[1], labels.size)


def _forward(vocab_axes, rows, hidden, head, labels):
    return _local(vocab_axes, rows, hidden, head, labels), (hidden, head, labels)


def _backward(vocab_axes, rows, saved, cotangent):
    hidden, head, labels = saved

    def one(dhead, chunk):
        hidden, labels, weights = chunk
        logits, lse, is_label = _logits(vocab_axes, hidden, head, labels)
        probability = jnp.exp(logits - lse[:, None])
        dlogits = (weights[:, None] * (is_label.astype(jnp.float32) - probability)).astype(hidden.dtype)
        dhead += dot(hidden, dlogits, (0,), (0,))
        return dhead, dot(dlogits, head, (1,), (1,)).astype(hidden.dtype)

    dhead, dhidden = lax.scan(one, jnp.zeros_like(head, dtype=jnp.float32), chunks(rows, hidden, labels, cotangent))
    return unchunked(dhidden, labels.size), dhead.astype(head.dtype), None


_local.defvjp(_forward, _backward)

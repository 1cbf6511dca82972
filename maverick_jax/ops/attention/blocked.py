"""Attention as XLA's own matrix products: blocks of queries, each over the keys that it can see. It runs everywhere.

B batch, T query length, S key length, N query heads, K key/value heads, G = N/K, H head dim.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.ops.attention.spec import MASKED, MaskSpec, Segments, one_segment, visible
from maverick_jax.ops.dot import dot
from maverick_jax.ops.kernels import Kernel
from maverick_jax.saved import ATTENTION

MAX_BLOCKS, MIN_BLOCK = 8, 128
HEADS = ((0, 1), (0, 1))  # the batch axes of every product: sequences and key/value heads


def blocked_attention(q, k, v, mask: MaskSpec, segments: Segments | None) -> jax.Array:
    """Computes `attention_reference`; each block of queries reads only the keys that it can see. The backward pass
    recomputes the scores, so no array of size T x S outlives its block."""
    B, T, N, H = q.shape
    K, size = k.shape[2], mask.size
    segments = segments or one_segment(1, T)
    q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)  # heads first: every product below is then a plain
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))  # matrix product for each sequence and key/value head
    block = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    starts = range(0, T, block)
    outputs = []
    for start, queries in zip(starts, jnp.split(q, list(starts)[1:], axis=3), strict=True):
        stop = min(start + block, T)
        first = 0 if size is None else max(0, start - size + 1)  # in a segment, positions grow no faster than indices
        places = _slice(segments, start, stop), _slice(segments, first, stop)
        outputs.append(_attend(mask, queries, k[:, :, first:stop], v[:, :, first:stop], *places))
    out = jnp.concatenate(outputs, axis=3) if len(outputs) > 1 else outputs[0]
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attention_over(q, k, v, mask: MaskSpec, queries: Segments, keys: Segments) -> jax.Array:
    """Attention of q [B,T,N,H] at `queries` over k and v [B,S,K,H] at `keys`, such as the keys of earlier tokens."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[2], -1, H).transpose(0, 2, 3, 1, 4)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    out = _attend(mask, q, k, v, queries, keys)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _scores(mask, q, k, queries, keys) -> jax.Array:
    """float32[B,K,G,T,S] of q [B,K,G,T,H] and k [B,K,S,H], masked.

    In a scan over layers, what does not depend on the layer is computed once before the loop and kept: 36 GB of masks a
    device in Maverick's step. The barrier makes masks depend on the layer's q."""
    q, queries, keys, masked = jax.lax.optimization_barrier((q, queries, keys, jnp.float32(MASKED)))
    seen = visible(mask, queries, keys)[:, None, None]
    return jnp.where(seen, dot(q, k, (4,), (3,), HEADS) * q.shape[-1] ** -0.5, masked)


def _over_keys(weights, v) -> jax.Array:
    """float32[B,K,G,T,H]: weights [B,K,G,T,S] times v [B,K,S,H]."""
    return dot(weights.astype(v.dtype), v, (4,), (2,), HEADS)


def _over_queries(x, weights) -> jax.Array:
    """float32[B,K,S,H]: x [B,K,G,T,H] and weights [B,K,G,T,S] contracted over queries. The small operand comes first,
    so that the large one is not transposed in memory; the barrier keeps XLA from swapping the operands back."""
    out = dot(x, weights.astype(x.dtype), (2, 3), (2, 3), HEADS)
    return jax.lax.optimization_barrier(out).transpose(0, 1, 3, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mask, q, k, v, queries, keys) -> jax.Array:
    """Attention of one block: q [B,K,G,T,H], k and v [B,K,S,H], segments [B or 1, T] and [B or 1, S] -> [B,K,G,T,H].

    The backward pass finds out again which keys are visible, from the segments: kept masks of all blocks would be the
    largest arrays of a step."""
    return _attend_forward(mask, q, k, v, queries, keys)[0]


def _attend_forward(mask, q, k, v, queries, keys):
    out, lse = block(mask, q, k, v, queries, keys)
    out, lse = checkpoint_name(out.astype(q.dtype), ATTENTION), checkpoint_name(lse, ATTENTION)
    return out, (q, k, v, queries, keys, out, lse)


def _attend_backward(mask, saved, dout):
    q, k, v, queries, keys, out, lse = saved
    dq, dk, dv = block_gradients(mask, q, k, v, queries, keys, lse, share_of_outputs(out, dout), dout)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def block(mask: MaskSpec, q, k, v, queries: Segments, keys: Segments) -> tuple[jax.Array, jax.Array]:
    """Attention of a block of queries to a block of keys, float32[B,K,G,T,H], and the logsumexp of the scores,
    float32[B,K,G,T,1], with which results for several blocks of keys are combined. Arguments as of `_attend`."""
    scores = _scores(mask, q, k, queries, keys)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return _over_keys(weights, v) / total, largest + jnp.log(total)


def block_gradients(mask: MaskSpec, q, k, v, queries: Segments, keys: Segments, lse, share, dout):
    """What a block of queries and a block of keys add to the gradients of q, k and v, in float32. `lse` [B,K,G,T,1]: of
    the scores of all keys; `share`: `share_of_outputs` of the queries; dout [B,K,G,T,H].

    The backward pass of flash attention (arXiv 2205.14135): it recomputes the weights from scores and logsumexp."""
    weights = jnp.exp(_scores(mask, q, k, queries, keys) - lse)
    dv = _over_queries(dout, weights)
    dweights = dot(dout, v, (4,), (3,), HEADS)
    dscores = (weights * (dweights - share) * q.shape[-1] ** -0.5).astype(q.dtype)
    return _over_keys(dscores, k), _over_queries(q, dscores), dv


def share_of_outputs(out, dout) -> jax.Array:
    """float32[B,K,G,T,1]: the part of the scores' gradient that all keys of a query share."""
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1, keepdims=True)


def _slice(segments: Segments, start: int, stop: int) -> Segments:
    return jax.tree.map(lambda x: x[:, start:stop], segments)


BLOCKED = Kernel("xla", blocked_attention)

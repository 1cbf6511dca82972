"""Attention on local arrays: a dense reference, and a blocked form that skips keys that no query can see.

B batch, T query length, S key length, N query heads, K key/value heads, G = N/K, H head dim.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.ops.dot import dot
from maverick_jax.target import traced_platform

ATTENTION = "attention"
"""The checkpoint name of what the backward pass needs of the forward pass: outputs and logsumexp of the scores."""
MAX_BLOCKS, MIN_BLOCK = 8, 128
HEADS = ((0, 1), (0, 1))  # the batch axes of every product: sequences and key/value heads
MASKED = -1e30  # finite, so that a query that sees no key (padding) gives a mean and not NaN


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Which earlier keys of its own segment a query sees: all (`size` None), those of its chunk of `size` positions,
    or the last `size`."""

    kind: Literal["chunked", "sliding_window"] = "chunked"
    size: int | None = None

    def allows(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Whether the query at position `query` sees the key at position `key` (arrays that broadcast)."""
        causal = key <= query
        if self.size is None:
            return causal
        if self.kind == "chunked":
            return causal & (query // self.size == key // self.size)
        return causal & (query - key < self.size)


@dataclasses.dataclass(frozen=True)
class Segments:
    """`positions` int32[B, T]: each token's position in its segment. `segment_ids` int32[B, T]: the segment's number,
    from 1; 0 is padding."""

    positions: jax.Array
    segment_ids: jax.Array


jax.tree_util.register_dataclass(Segments)


def attention_reference(q, k, v, mask: MaskSpec, segments: Segments | None = None) -> jax.Array:
    """The slow twin: all scores and a dense mask. q [B,T,N,H], k and v [B,T,K,H] -> [B,T,N,H]."""
    B, T, N, H = q.shape
    segments = segments or _one_segment(1, T)
    k, v = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * H**-0.5
    visible = _visible(mask, segments, segments)[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)


def attention(q, k, v, mask: MaskSpec, segments: Segments | None = None) -> jax.Array:
    """Computes `attention_reference`; each block of queries reads only the keys that it can see.

    Without `segments`, each row is one segment, so that each chunk can be computed as a row of its own. The backward
    pass recomputes the scores, so no array of size T x S outlives its block.
    """
    B, T, N, H = q.shape
    K, size = k.shape[2], mask.size
    if segments is None and size is not None and mask.kind == "chunked" and size < T and T % size == 0:
        fold = lambda x: x.reshape(B * (T // size), size, *x.shape[2:])
        return attention(fold(q), fold(k), fold(v), MaskSpec(), None).reshape(q.shape)
    segments = segments or _one_segment(1, T)
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


def attention_unmasked(q, k, v) -> jax.Array:
    """Every query sees every key: q, k and v [B,T,N,H] -> [B,T,N,H]. The backward pass recomputes the scores.

    On a CPU, heads are computed one after the other: the scores of one head stay in the cache, and a plain matrix
    product runs at twice the rate of a batched one (measured: two thirds of the time).
    """
    B, T, N, H = q.shape
    heads = tuple(x.transpose(0, 2, 1, 3).reshape(B * N, T, H) for x in (q, k, v))
    one_head = jax.checkpoint(lambda head: _one_head(*head))
    out = jax.lax.map(one_head, heads) if traced_platform() == "cpu" else jax.vmap(one_head)(heads)
    return out.reshape(B, N, T, H).transpose(0, 2, 1, 3)


def _one_head(q, k, v) -> jax.Array:
    """q, k and v [T,H] -> [T,H]."""
    scores = dot(q, k, (1,), (1,)) * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return (dot(weights.astype(v.dtype), v, (1,), (0,)) / jnp.sum(weights, axis=-1, keepdims=True)).astype(q.dtype)


def _scores(mask, q, k, queries, keys) -> jax.Array:
    """float32[B,K,G,T,S] of q [B,K,G,T,H] and k [B,K,S,H], masked.

    In a scan over layers, what does not depend on the layer is computed once before the loop and kept: 36 GB of masks a
    device in Maverick's step. The barrier makes masks depend on the layer's q."""
    q, queries, keys, masked = jax.lax.optimization_barrier((q, queries, keys, jnp.float32(MASKED)))
    visible = _visible(mask, queries, keys)[:, None, None]
    return jnp.where(visible, dot(q, k, (4,), (3,), HEADS) * q.shape[-1] ** -0.5, masked)


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
    scores = _scores(mask, q, k, queries, keys)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = checkpoint_name((_over_keys(weights, v) / total).astype(q.dtype), ATTENTION)
    lse = checkpoint_name(largest + jnp.log(total), ATTENTION)
    return out, (q, k, v, queries, keys, out, lse)


def _attend_backward(mask, saved, dout):
    """The backward pass of flash attention (arXiv 2205.14135): it recomputes the weights from scores and logsumexp."""
    q, k, v, queries, keys, out, lse = saved
    weights = jnp.exp(_scores(mask, q, k, queries, keys) - lse)
    dv = _over_queries(dout, weights)
    dweights = dot(dout, v, (4,), (3,), HEADS)
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1, keepdims=True)
    dscores = (weights * (dweights - delta) * q.shape[-1] ** -0.5).astype(q.dtype)
    dq, dk = _over_keys(dscores, k), _over_queries(q, dscores)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _visible(mask: MaskSpec, queries: Segments, keys: Segments) -> jax.Array:
    """Which key each query sees, bool[B, T, S]."""
    visible = mask.allows(queries.positions[:, :, None], keys.positions[:, None, :])
    return visible & (queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :])


def _one_segment(batch: int, length: int) -> Segments:
    positions = jax.lax.broadcasted_iota(jnp.int32, (batch, length), 1)
    return Segments(positions, jnp.ones_like(positions))


def _slice(segments: Segments, start: int, stop: int) -> Segments:
    return jax.tree.map(lambda x: x[:, start:stop], segments)

"""Attention on local arrays: a dense reference, and a blocked form that never reads keys no query can see.

B batch, T query length, S key length, N query heads, K key/value heads, G = N/K, H head dim.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

MAX_BLOCKS, MIN_BLOCK = 8, 256
MASKED = -1e30  # finite: a row that sees nothing (padding) gives a mean, not NaN


@dataclasses.dataclass(frozen=True)
class Reach:
    """Which earlier keys of its own document a query sees: all (`size` None), those of its chunk of `size`
    positions, or the last `size`."""

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
class Documents:
    """Where each token stands: `positions` int32[B, T] in its document, `segment_ids` int32[B, T] (0 is padding)."""

    positions: jax.Array
    segment_ids: jax.Array


jax.tree_util.register_dataclass(Documents)


def attention_reference(q, k, v, reach: Reach, documents: Documents | None = None) -> jax.Array:
    """The obvious form: all scores, a dense mask. q [B,T,N,H], k and v [B,T,K,H] -> [B,T,N,H]."""
    B, T = q.shape[:2]
    if documents is None:
        documents = _one_document(B, T)
    return _attend(q, k, v, reach, documents, documents)


def attention(q, k, v, reach: Reach, documents: Documents | None = None) -> jax.Array:
    """`attention_reference`, reading for each block of queries only the keys it can see.

    Without `documents` each row is one document, and a chunk is then simply a shorter row.
    The scores are recomputed in the backward pass, so nothing of size T x S outlives its block.
    """
    B, T, N, H = q.shape
    size = reach.size
    if documents is None and size is not None and reach.kind == "chunked" and size < T and T % size == 0:
        fold = lambda x: x.reshape(B * (T // size), size, *x.shape[2:])
        return attention(fold(q), fold(k), fold(v), Reach(), None).reshape(q.shape)
    if documents is None:
        documents = _one_document(1, T)
    block = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if size is None else max(0, start - size + 1)  # positions never outrun indices inside a document
        attend = jax.checkpoint(functools.partial(_attend, reach=reach))
        outputs.append(
            attend(
                q[:, start:stop],
                k[:, first:stop],
                v[:, first:stop],
                queries=_slice(documents, start, stop),
                keys=_slice(documents, first, stop),
            )
        )
    return jnp.concatenate(outputs, axis=1) if len(outputs) > 1 else outputs[0]


def _attend(q, k, v, reach: Reach, queries: Documents, keys: Documents) -> jax.Array:
    """Grouped-query attention of some queries over some keys, softmax in float32."""
    B, T, N, H = q.shape
    K = k.shape[2]
    grouped = q.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * H**-0.5
    at = lambda x: x[:, None, None, :, None]
    to = lambda x: x[:, None, None, None, :]
    visible = reach.allows(at(queries.positions), to(keys.positions))
    visible &= at(queries.segment_ids) == to(keys.segment_ids)
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v).reshape(B, T, N, H)


def _one_document(batch: int, length: int) -> Documents:
    positions = jax.lax.broadcasted_iota(jnp.int32, (batch, length), 1)
    return Documents(positions, jnp.ones_like(positions))


def _slice(documents: Documents, start: int, stop: int) -> Documents:
    return jax.tree.map(lambda x: x[:, start:stop], documents)

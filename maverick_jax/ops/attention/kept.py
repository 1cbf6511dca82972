"""Attention of new tokens to the kept keys of their text: a ring of S slots, in which slot p mod S has position p.

B batch, T query length, S slots, N query heads, K key/value heads, G = N/K, H head dim.
"""

import math

import jax
import jax.numpy as jnp

from maverick_jax.ops.attention.blocked import block
from maverick_jax.ops.attention.spec import MASKED, MaskSpec, Segments, visible

KEY_BLOCK, QUERY_BLOCK = 1024, 512
"""Most keys and queries of which scores are in memory at once."""


def held_positions(last: jax.Array, slots: int, index: jax.Array | None = None) -> jax.Array:
    """int32[B, S]: the position in each of `slots` ring slots if `last` int32[B] is the newest position; negative for
    an empty slot. `index` int32[n]: of these slots alone, [B, n]."""
    index = jnp.arange(slots, dtype=jnp.int32) if index is None else index
    return last[:, None] - (last[:, None] - index[None, :]) % slots


def attention_to_kept(q, k, v, mask: MaskSpec, queries: Segments, last: jax.Array) -> jax.Array:
    """Attention of q [B,T,N,H] at `queries` to the kept k and v [B,K,S,H], whose newest positions are `last` int32[B]
    (-1: nothing is kept) -> [B,T,N,H] in q's dtype. Blocks of keys that no text has filled yet are not read."""
    B, T, N, H = q.shape
    q = q.reshape(B, T, k.shape[1], -1, H).transpose(0, 2, 3, 1, 4)
    attend = lambda q, queries: _over_keys(q, k, v, mask, queries, last)
    if T <= QUERY_BLOCK:
        out = attend(q, queries)
    else:
        out = _by_queries(attend, q, queries)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def attention_to_kept_reference(q, k, v, mask: MaskSpec, queries: Segments, last: jax.Array) -> jax.Array:
    """The slow twin: all scores and a dense mask. Arguments and result as `attention_to_kept`."""
    held = held_positions(last, k.shape[2])
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("BTNH,BNSH->BNTS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    seen = visible(mask, queries, Segments(held, (held >= 0).astype(jnp.int32)))[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("BNTS,BNSH->BTNH", weights, v)


def _by_queries(attend, q, queries: Segments):
    """`attend` for blocks of q [B,K,G,T,H], one after the other."""
    B, K, G, T, H = q.shape
    count = math.ceil(T / QUERY_BLOCK)
    size = math.ceil(T / count)
    pad = lambda x, axis: jnp.pad(x, [(0, count * size - T if i == axis else 0) for i in range(x.ndim)])
    blocks = jnp.moveaxis(pad(q, 3).reshape(B, K, G, count, size, H), 3, 0)
    places = jax.tree.map(lambda x: jnp.moveaxis(pad(x, 1).reshape(-1, count, size), 1, 0), queries)
    out = jax.lax.map(lambda block: attend(*block), (blocks, places))
    return jnp.moveaxis(out, 0, 3).reshape(B, K, G, count * size, H)[:, :, :, :T]


def _over_keys(q, k, v, mask: MaskSpec, queries: Segments, last):
    """q [B,K,G,T,H] over all filled blocks of keys -> [B,K,G,T,H]."""
    S = k.shape[2]
    size = min(S, KEY_BLOCK)

    def over(i, parts):
        first = jnp.minimum(i * size, S - size)
        index = first + jnp.arange(size, dtype=jnp.int32)
        held = held_positions(last, S, index)
        keys = Segments(held, ((held >= 0) & (index >= i * size)[None, :]).astype(jnp.int32))
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size, axis=2)
        return _merged(parts, block(mask, q, cut(k), cut(v), queries, keys))

    if size == S:
        held = held_positions(last, S)
        out, _ = block(mask, q, k, v, queries, Segments(held, (held >= 0).astype(jnp.int32)))
        return out.astype(q.dtype)
    nothing = jnp.zeros_like(q, dtype=jnp.float32)
    filled = jnp.minimum(jnp.max(last) + 1, S)
    out, _ = jax.lax.fori_loop(0, (filled + size - 1) // size, over, (nothing, nothing[..., :1] - jnp.inf))
    return out.astype(q.dtype)


def _merged(one, other):
    """Attention to two sets of keys, each its result and the logsumexp of its scores."""
    lse = jnp.logaddexp(one[1], other[1])
    share = lambda part: part[0] * jnp.exp(part[1] - lse)
    return share(one) + share(other), lse

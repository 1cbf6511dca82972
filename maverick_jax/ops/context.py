"""Attention over rows that several devices share: keys and values travel around a ring of devices.

In each turn a device attends to the keys that it holds and passes them on, so that it never holds those of the whole
row; of positions and segments, which are small, it does. Partial results are combined by the logsumexp of their scores.
The backward pass sends keys and values around again, and behind them the sums of their gradients, in float32, which
arrive where they began. Transfers and the products of the same turn do not wait for each other.

Queries and keys are cut into tiles, and a pair of tiles in which no query can see a key is skipped. With the blocks of
`RowSplit`, every device skips the same number of them in a row of one segment.

B batch, T tokens of a row, t of them on this device, N query heads, K key/value heads, G = N/K, H head dim, n tiles of
s tokens on a device.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.ops.attention.blocked import block, block_gradients, share_of_outputs
from maverick_jax.ops.attention.spec import MaskSpec, Segments
from maverick_jax.saved import ATTENTION

SEEN_TILES = "seen_tiles"
"""The scope of what is computed only for pairs of tiles in which a query may see a key."""
TILE = 1024
"""Most tokens of a tile: the scores of two tiles of Maverick's 40 heads are 168 MB in float32."""


class Tokens(NamedTuple):
    """What decides which keys the queries of whole rows, or of a tile, see."""

    segments: Segments
    """int32[B or 1, T] each."""
    places: jax.Array
    """int32[1, T]: places in the row."""


@dataclasses.dataclass(frozen=True)
class _Ring:
    axes: tuple[str, ...]
    mask: MaskSpec

    @property
    def turns(self) -> int:
        return lax.axis_size(self.axes)

    def passed_on(self, x):
        """The array of the device before this one."""
        return lax.ppermute(x, self.axes, [(i, (i + 1) % self.turns) for i in range(self.turns)])

    def held(self, tokens: Tokens, turn) -> Tokens:
        """The tiles, of those of whole rows, whose keys this device holds in a turn; in turn 0 they are its own."""
        n = tokens.places.shape[0] // self.turns
        first = (lax.axis_index(self.axes) - turn) % self.turns * n
        return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, first, n), tokens)


def ring_attention(q, k, v, mask: MaskSpec, tokens: Tokens, axes: tuple[str, ...], tile: int = TILE) -> jax.Array:
    """`attention_reference` of rows that the devices of `axes` share, inside `shard_map`: q [B,t,N,H] and k and v
    [B,t,K,H] are this device's part, and so is the result [B,t,N,H]; `tokens` are those of all devices, in their order.
    `tile`: most tokens of a tile."""
    B, t, N, H = q.shape
    K, s = k.shape[2], _divisor(t, tile)
    q = q.reshape(B, t // s, s, K, N // K, H).transpose(1, 0, 3, 4, 2, 5)
    kv = jnp.stack([k, v], axis=1).reshape(B, 2, t // s, s, K, H).transpose(2, 1, 0, 4, 3, 5)
    tiled = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, s), 1, 0), tokens)
    out = _attend(_Ring(axes, mask), q, kv, tiled)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, t, N, H)


def _divisor(length: int, most: int) -> int:
    """The largest divisor of `length` up to `most`."""
    return next(size for size in range(min(length, most), 0, -1) if length % size == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: _Ring, q, kv, tokens: Tokens) -> jax.Array:
    """q [n,B,K,G,s,H], keys and values [n,2,B,K,s,H], tokens of all devices [*,B or 1,s] -> [n,B,K,G,s,H]."""
    return _forward(ring, q, kv, tokens)[0]


def _forward(ring: _Ring, q, kv, tokens: Tokens):
    def turn(carry, i):
        kv, found = carry
        return (ring.passed_on(kv), _absorbed(ring, q, kv, tokens, i, found)), None

    nothing = jnp.zeros_like(q, dtype=jnp.float32)
    found, last = (nothing, nothing[..., :1] - jnp.inf), ring.turns - 1
    (held, found), _ = lax.scan(turn, (kv, found), jnp.arange(last))
    out, lse = _absorbed(ring, q, held, tokens, last, found)
    out, lse = checkpoint_name(out.astype(q.dtype), ATTENTION), checkpoint_name(lse, ATTENTION)
    return out, (q, kv, tokens, out, lse)


def _backward(ring: _Ring, saved, dout):
    q, kv, tokens, out, lse = saved
    mine = q, lse, share_of_outputs(out, dout), dout

    def turn(carry, i):
        kv, sums, dq = carry
        dq, more = _gradients(ring, mine, kv, tokens, i, dq)
        return (ring.passed_on(kv), ring.passed_on(sums) + more, dq), None

    zeros = lambda x: jnp.zeros_like(x, dtype=jnp.float32)
    last = ring.turns - 1
    (held, sums, dq), _ = lax.scan(turn, (kv, zeros(kv), zeros(q)), jnp.arange(last))
    dq, more = _gradients(ring, mine, held, tokens, last, dq)
    dkv = ring.passed_on(ring.passed_on(sums) + more)  # to the device whose keys and values they are
    return dq.astype(q.dtype), dkv.astype(kv.dtype), None


_attend.defvjp(_forward, _backward)


# ---- this device's queries and the keys that it holds --------------------------------------------------------------


def _absorbed(ring: _Ring, q, kv, tokens: Tokens, turn, found):
    """Outputs and logsumexp [n, ...] of this device's queries, after also attending to the keys of a turn."""
    held = kv, ring.held(tokens, turn)

    def of_queries(tile):
        q, queries, found = tile

        def of_keys(found, tile):
            (k, v), keys = tile
            see = lambda: _combined(found, block(ring.mask, q, k, v, queries.segments, keys.segments))
            return _if_seen(ring.mask, queries, keys, see, found), None

        return lax.scan(of_keys, found, held)[0]

    return lax.map(of_queries, (q, ring.held(tokens, 0), found))


def _combined(one, other):
    """Outputs and logsumexp of two sets of keys together."""
    (out, lse), (more, of_more) = one, other
    both = jnp.logaddexp(lse, of_more)
    return out * jnp.exp(lse - both) + more * jnp.exp(of_more - both), both


def _gradients(ring: _Ring, mine, kv, tokens: Tokens, turn, dq):
    """dq with what the keys of a turn add, and the gradients of those keys and values from this device's queries."""
    held = kv, ring.held(tokens, turn)

    def of_queries(sums, tile):
        (q, *rest), queries, dq = tile

        def of_keys(dq, tile):
            (k, v), keys, sums = tile

            def see():
                more, dk, dv = block_gradients(ring.mask, q, k, v, queries.segments, keys.segments, *rest)
                return dq + more, sums + jnp.stack([dk, dv])

            return _if_seen(ring.mask, queries, keys, see, (dq, sums))

        dq, sums = lax.scan(of_keys, dq, (*held, sums))
        return sums, dq

    sums, dq = lax.scan(of_queries, jnp.zeros_like(kv, dtype=jnp.float32), (mine, ring.held(tokens, 0), dq))
    return dq, sums


def _if_seen(mask: MaskSpec, queries: Tokens, keys: Tokens, see: Callable, otherwise):
    """`see()` if a query of a tile may see a key of another, else `otherwise`."""
    with jax.named_scope(SEEN_TILES):
        return lax.cond(_may_see(mask, queries, keys), see, lambda: otherwise)


def _may_see(mask: MaskSpec, queries: Tokens, keys: Tokens) -> jax.Array:
    """bool[]: whether a query of a tile may see a key of another, from the bounds of places and segments alone."""
    may = jnp.min(keys.places) <= jnp.max(queries.places)
    if mask.size is not None:  # in a segment, positions grow no slower than places
        may &= jnp.min(queries.places) - jnp.max(keys.places) < mask.size
    (first, last, padded), (least, most, padding) = (_bounds(x.segments.segment_ids) for x in (queries, keys))
    return may & jnp.any(((first <= most) & (least <= last)) | (padded & padding))


def _bounds(ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each row of segment ids [B, s]: the least and the greatest segment, and whether there is padding."""
    real = ids > 0
    return jnp.min(jnp.where(real, ids, jnp.iinfo(jnp.int32).max), axis=1), jnp.max(ids, axis=1), jnp.any(~real, axis=1)

"""Packed rows as pieces: stretches of neighboring tokens, each of which attends to itself alone.

A piece is a segment, or the part of a segment that lies in one chunk. Kernels for packed rows take pieces by their
starts and lengths in the tokens of all rows, end to end; padding belongs to none. B rows of T tokens, C pieces.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from maverick_jax.ops.attention.spec import Segments


class Pieces(NamedTuple):
    """The pieces of B rows, counted from 0 in the order of the rows."""

    index: jax.Array
    """int32[B, T]: the number of the piece that a token belongs to; -1 is padding."""
    place: jax.Array
    """int32[B, T]: the token's place in its piece, from 0; undefined at padding."""
    begun: jax.Array
    """int32[B*T]: number of pieces that begin at or before a token, in the rows end to end."""

    @classmethod
    def of(cls, segments: Segments, chunk: int | None) -> "Pieces":
        """The segments, cut where a chunk of `chunk` positions begins."""
        ids, (B, T) = segments.segment_ids, segments.segment_ids.shape
        others = ids[:, 1:] != ids[:, :-1]
        if chunk is not None:
            others |= segments.positions[:, 1:] % chunk == 0
        begins = (jnp.concatenate([jnp.ones_like(ids[:, :1], bool), others], axis=1) & (ids > 0)).reshape(-1)
        begun, flat = jnp.cumsum(begins, dtype=jnp.int32), jnp.arange(B * T, dtype=jnp.int32)
        place = flat - jax.lax.cummax(jnp.where(begins, flat, 0))
        return cls(jnp.where(ids > 0, begun.reshape(B, T) - 1, -1), place.reshape(B, T), begun)

    @property
    def count(self) -> jax.Array:
        """int32[]: how many there are."""
        return self.begun[-1]

    def slots(self, first: jax.Array | int, capacity: int) -> tuple[jax.Array, jax.Array]:
        """Of `capacity` pieces from number `first` on: starts int32[C] in the tokens of all rows, and lengths int32[C].
        Where there are no more pieces, a start is B*T and a length 0."""
        wanted = first + jnp.arange(capacity, dtype=jnp.int32)
        count = lambda found: jnp.sum(found, axis=1, dtype=jnp.int32)
        starts = count(self.begun[None, :] <= wanted[:, None])
        return starts, count(self.index.reshape(1, -1) == wanted[:, None])

    def among(self, first: jax.Array | int, capacity: int) -> jax.Array:
        """Which tokens belong to the pieces of `slots`, bool[B, T]."""
        return (self.index >= first) & (self.index < first + capacity)

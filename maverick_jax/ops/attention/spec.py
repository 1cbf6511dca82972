"""What attention computes: which keys a query sees, and which tokens belong together.

B batch, T query length, S key length, N query heads, K key/value heads, G = N/K, H head dim.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

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

    @property
    def chunk(self) -> int | None:
        """Positions of a chunk; None: there are no chunks."""
        return self.size if self.kind == "chunked" else None

    @property
    def window(self) -> int | None:
        """Number of keys that a query sees at most; None: no window slides."""
        return self.size if self.kind == "sliding_window" else None

    def __str__(self) -> str:
        return "causal" if self.size is None else f"{self.kind.replace('_', ' ')} {self.size:,}"


@dataclasses.dataclass(frozen=True)
class Segments:
    """`positions` int32[B, T]: each token's position in its segment. `segment_ids` int32[B, T]: the segment's number,
    from 1; 0 is padding. A segment's tokens are neighbors, and their positions count up by one."""

    positions: jax.Array
    segment_ids: jax.Array


jax.tree_util.register_dataclass(Segments)


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """What decides which kernel computes attention: shapes on one device, dtype and mask."""

    mask: MaskSpec
    packed: bool
    """Whether segments are given; otherwise each row is one segment."""
    batch: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, q, k, mask: MaskSpec, segments: Segments | None) -> "AttentionCase":
        B, T, N, H = q.shape
        return cls(mask, segments is not None, B, T, N, k.shape[2], H, q.dtype.name)

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads x {self.head_dim} {self.dtype}"
        return f"{self.mask}{' packed' if self.packed else ''}, {self.batch} x {self.length:,}, {heads}"


def one_segment(batch: int, length: int) -> Segments:
    """Rows that are one segment each."""
    positions = jax.lax.broadcasted_iota(jnp.int32, (batch, length), 1)
    return Segments(positions, jnp.ones_like(positions))


def visible(mask: MaskSpec, queries: Segments, keys: Segments) -> jax.Array:
    """Which key each query sees, bool[B, T, S]."""
    found = mask.allows(queries.positions[:, :, None], keys.positions[:, None, :])
    return found & (queries.segment_ids[:, :, None] == keys.segment_ids[:, None, :])

"""Attention on local arrays: one signature, several kernels, one slow twin."""

import jax

from maverick_jax.ops.attention.blocked import BLOCKED, attention_over
from maverick_jax.ops.attention.cudnn import CUDNN
from maverick_jax.ops.attention.kept import attention_to_kept, attention_to_kept_reference, held_positions
from maverick_jax.ops.attention.reference import attention_reference
from maverick_jax.ops.attention.spec import AttentionCase, MaskSpec, Segments
from maverick_jax.ops.attention.splash import SPLASH
from maverick_jax.ops.attention.unmasked import attention_unmasked
from maverick_jax.ops.kernels import choose

__all__ = ["KERNELS", "MaskSpec", "Segments", "attention", "attention_over", "attention_reference",
           "attention_to_kept", "attention_to_kept_reference", "attention_unmasked", "held_positions"]  # fmt: skip
KERNELS = (CUDNN, SPLASH, BLOCKED)
"""In the order in which they are preferred."""


def attention(q, k, v, mask: MaskSpec, segments: Segments | None = None) -> jax.Array:
    """Computes `attention_reference` with the first kernel that applies: q [B,T,N,H], k and v [B,T,K,H] -> [B,T,N,H].
    What a kernel gives at padding is finite and otherwise undefined.

    Without `segments`, each row is one segment, so that each chunk can be computed as a row of its own.
    """
    T = q.shape[1]
    if segments is None and mask.size is not None and mask.size >= T:
        mask = MaskSpec()
    if segments is None and mask.chunk is not None and T % mask.chunk == 0:
        fold = lambda x: x.reshape(-1, mask.chunk, *x.shape[2:])
        return attention(fold(q), fold(k), fold(v), MaskSpec()).reshape(q.shape)
    case = AttentionCase.of(q, k, mask, segments)
    return choose(f"attention ({case})", KERNELS, case).run(q, k, v, mask, segments)

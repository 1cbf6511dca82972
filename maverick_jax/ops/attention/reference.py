"""The slow twin of every attention kernel."""

import jax
import jax.numpy as jnp

from maverick_jax.ops.attention.spec import MASKED, MaskSpec, Segments, one_segment, visible


def attention_reference(q, k, v, mask: MaskSpec, segments: Segments | None = None) -> jax.Array:
    """All scores and a dense mask. q [B,T,N,H], k and v [B,T,K,H] -> [B,T,N,H]."""
    B, T, N, H = q.shape
    segments = segments or one_segment(1, T)
    k, v = (jnp.repeat(x, N // x.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * H**-0.5
    seen = visible(mask, segments, segments)[:, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, v)

"""Root-mean-square norm of the text model, layer norm of the image encoder."""

import jax
import jax.numpy as jnp

from maverick_jax.ops.affine import scaled


def rms_normalize(x: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32, returned in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """RMSNorm (arXiv 1910.07467) of `x` [B, T, D] with gain `scale` [D], rounded to x's dtype before the gain."""
    return scaled(rms_normalize(x, eps), scale[None, None, :])


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """LayerNorm (arXiv 1607.06450) of `x` [N, Q, W] over its last axis, in float32, returned in the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * scale.astype(jnp.float32)[None, None] + bias.astype(jnp.float32)[None, None]).astype(x.dtype)

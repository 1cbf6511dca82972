"""Rotary position embedding on adjacent pairs (arXiv 2104.09864), and query temperature of the global layers."""

import jax
import jax.numpy as jnp
import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.network import RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Angle per position of each pair, float32[H/2], in radians. All arithmetic is float32, as in the public model:
    float64 angles would change its logits by thousandths at 8k positions."""
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = (np.float32(1.0) / np.float32(theta) ** exponent).astype(np.float32)
    return frequency if scaling is None else _scaled(frequency, scaling)


def _scaled(frequency: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """The "llama3" rule: stretches long wavelengths by `factor`, keeps short ones and interpolates between them."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings / (2 * np.pi / frequency)  # rotations over the original context
    stretched = frequency / np.float32(scaling.factor)
    if high == low:
        return np.where(turns > high, frequency, np.where(turns < low, stretched, frequency)).astype(np.float32)
    mix = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - mix) * stretched + mix * frequency).astype(np.float32)


def rope_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the angles at `positions` int32[B, T], float32[B, T, 1, H/2] each."""
    frequency = jnp.asarray(rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling))
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates pairs (2j, 2j+1) of every head of `x` [B, T, N, H] in float32. The result has the dtype of `x`."""
    cos, sin = tables
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def query_temperature(config: ModelConfig, positions: jax.Array) -> jax.Array:
    """Scale of the queries of the global layers, float32[B, T, 1, 1], after scalable softmax (arXiv 2501.19399).

    It counts positions from one, so that it first increases at position floor_scale - 1.
    """
    steps = jnp.floor((positions.astype(jnp.float32) + 1.0) / config.floor_scale)
    return (1.0 + config.attn_scale * jnp.log1p(steps))[:, :, None, None]

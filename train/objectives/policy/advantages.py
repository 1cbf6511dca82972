"""Advantages: how much better a rollout, or a token of it, was than expected. No gradient passes through them."""

import jax
import jax.numpy as jnp
from jax import lax


def of_groups(rewards: jax.Array, *, scale: bool, epsilon: float = 1e-4) -> jax.Array:
    """Rewards minus the mean of their group, float32[groups, n]; with `scale`, over the group's standard deviation (of
    n - 1) plus `epsilon` (GRPO, arXiv 2402.03300), else as they are (Dr. GRPO, arXiv 2503.20783). A group of equal
    rewards gets 0."""
    centered = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    return centered / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True) + epsilon) if scale else centered


def leave_one_out(rewards: jax.Array) -> jax.Array:
    """Each reward minus the mean of the others of its group, float32[groups, n] (RLOO, arXiv 2402.14740)."""
    n = rewards.shape[-1]
    return (rewards - jnp.mean(rewards, axis=-1, keepdims=True)) * (n / (n - 1))


def generalized(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    gamma: float,
    decay: float,
    ends: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimates (arXiv 1506.02438) and returns, float32[B, T], of rewards and values [B, T].
    `decay` is lambda. Tokens with `mask` 0, such as observations, are passed over: the next token's value and advantage
    are carried across them. `ends` bool[B, T]: the last token of each of several sequences in a row; None: a row is one
    sequence."""

    def step(after, now):
        reward, own, m, end = now
        advantage, value = (jnp.where(end, 0, x) for x in after)
        new = reward + gamma * value - own + gamma * decay * advantage
        carried = jnp.where(m > 0, new, advantage), jnp.where(m > 0, own, value)
        return carried, new

    nothing = jnp.zeros_like(values[:, 0])
    ends = jnp.zeros(values.shape, bool) if ends is None else ends
    _, found = lax.scan(step, (nothing, nothing), (rewards.T, values.T, mask.T, ends.T), reverse=True)
    advantages = jnp.where(mask > 0, found.T, 0)
    return advantages, jnp.where(mask > 0, advantages + values, 0)


def whitened(x: jax.Array, mask: jax.Array) -> jax.Array:
    """x with mean 0 and variance 1 (of n - 1) over the tokens of `mask`; 0 elsewhere."""
    n = jnp.sum(mask)
    mean = jnp.sum(x * mask) / n
    variance = jnp.sum(mask * (x - mean) ** 2) / jnp.maximum(n - 1, 1)
    return (x - mean) * lax.rsqrt(variance + 1e-8) * mask

"""Losses of sampled tokens, from their log-probabilities now (`new`) and when they were sampled (`old`), and of values.

Arrays are float32[B, T], one sequence per row, unless a function says otherwise; `mask` is 1 for tokens that the model
wrote. Losses per token are divided by `normalized` only. Differences of log-probabilities are limited to `LIMIT`.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

LIMIT = 20.0
"""Largest difference of log-probabilities that enters a ratio."""
Normalization = Literal["token_mean", "sequence_mean", "fixed"]


def log_ratio(new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.clip(new - old, -LIMIT, LIMIT)


def clipped(
    new: jax.Array, old: jax.Array, advantages: jax.Array, *, low: float, high: float, dual: float | None = None
) -> jax.Array:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) per token (PPO, arXiv 1707.06347). `dual`: the largest multiple
    of -A that a token with A < 0 can cost (arXiv 1912.09729)."""
    ratio = jnp.exp(log_ratio(new, old))
    loss = jnp.maximum(-ratio * advantages, -jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    if dual is None:
        return loss
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def clipped_sequences(
    new: jax.Array, old: jax.Array, advantages: jax.Array, mask: jax.Array, *, low: float, high: float
) -> jax.Array:
    """float32[B]: as `clipped`, with one ratio per sequence, of geometric means over its tokens, and `advantages`
    [B] (GSPO, arXiv 2507.18071). A sequence without tokens has a ratio of 1."""
    mean = jnp.sum(mask * (new - old), axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    ratio = jnp.exp(jnp.clip(mean, -LIMIT, LIMIT))
    return jnp.maximum(-ratio * advantages, -jnp.clip(ratio, 1 - low, 1 + high) * advantages)


def weighted(new: jax.Array, old: jax.Array, advantages: jax.Array, *, high: float) -> jax.Array:
    """-min(ratio, 1 + high) A log p per token, with no gradient through the ratio (CISPO, arXiv 2506.13585)."""
    ratio = lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio(new, old)), 1 + high))
    return -ratio * advantages * new


def plain(new: jax.Array, advantages: jax.Array) -> jax.Array:
    """-A log p per token (REINFORCE, RLOO)."""
    return -advantages * new


def value_loss(values: jax.Array, old: jax.Array, returns: jax.Array, *, clip: float) -> jax.Array:
    """Half the larger squared error of a value and of the value limited to `old` +- `clip`, per token."""
    limited = old + jnp.clip(values - old, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (limited - returns) ** 2)


def divergence(new: jax.Array, reference: jax.Array, kind: Literal["k1", "k2", "k3"]) -> jax.Array:
    """Estimates of the divergence from the reference per token, from log-probabilities of the sampled token. `k1`:
    their difference; `k2`: half its square; `k3`: never negative and unbiased, with the gradient of `k2`, which is that
    of the divergence (joschu.net/blog/kl-approx)."""
    d = log_ratio(reference, new)
    if kind == "k1":
        return -d
    k2 = 0.5 * d * d
    return k2 if kind == "k2" else lax.stop_gradient(jnp.expm1(d) - d - k2) + k2


def normalized(loss: jax.Array, mask: jax.Array, how: Normalization, most: int = 1) -> jax.Array:
    """float32[]: `token_mean`: the mean over all tokens (DAPO, arXiv 2503.14476); `sequence_mean`: the mean over
    sequences of means over their tokens, without sequences that have none; `fixed`: the sum over the number of
    sequences with tokens times `most`, the most tokens of a sequence (Dr. GRPO)."""
    total, tokens = jnp.sum(jnp.where(mask > 0, loss, 0) * mask, axis=-1), jnp.sum(mask, axis=-1)
    sequences = jnp.maximum(jnp.sum((tokens > 0).astype(jnp.float32)), 1)
    if how == "token_mean":
        return jnp.sum(total) / jnp.maximum(jnp.sum(tokens), 1)
    if how == "sequence_mean":
        return jnp.sum(total / jnp.maximum(tokens, 1)) / sequences
    return jnp.sum(total) / (sequences * most)


def bradley_terry(chosen: jax.Array, rejected: jax.Array, *, margin: float = 0.0, center: float = 0.01) -> jax.Array:
    """-log sigmoid(chosen - rejected - margin) of rewards, plus `center` times their squared sum, which keeps them near
    0; float32 of their shape."""
    return -jax.nn.log_sigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2

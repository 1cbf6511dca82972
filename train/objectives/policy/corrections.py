"""Corrections for episodes sampled with other numbers than the loss has: by another program, or by older weights.

`log_weights` are old minus sampled log-probabilities of tokens, float32[b, T].
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from maverick_jax.ops.segment_sums import at_segments, segment_sums
from maverick_jax.settings.section import Section
from train.objectives.policy.losses import LIMIT

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Correction(Section):
    """`objective.correction`: the importance weight u of tokens, exp(old - sampled)."""

    kind: Literal["truncate", "mask_tokens", "mask_episodes"] = "truncate"
    """`truncate`: min(u, most); `mask_tokens`: u where it lies in [least, most], else 0; `mask_episodes`: u, limited by
    `most`, in episodes whose geometric mean of u lies in [least, most], else 0."""
    most: Positive = 2.0
    """Largest weight."""
    least: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Smallest weight of the two that mask."""

    def weights(self, log_weights: jax.Array, mask: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Factors of the tokens' losses, float32[b, T], without gradient."""
        log_weights = jax.lax.stop_gradient(jnp.clip(log_weights, -LIMIT, LIMIT))
        u = jnp.exp(log_weights)
        if self.kind == "truncate":
            return jnp.minimum(u, self.most)
        if self.kind == "mask_tokens":
            return jnp.where((u >= self.least) & (u <= self.most), u, 0)
        numbers, count = segment_ids - 1, segment_ids.shape[-1]
        lengths = segment_sums(mask, numbers, count)
        mean = jnp.exp(at_segments(segment_sums(mask * log_weights, numbers, count) / jnp.maximum(lengths, 1), numbers))
        return jnp.where((mean >= self.least) & (mean <= self.most), jnp.minimum(u, self.most), 0)

"""Methods that weigh whole episodes: GSPO and RLOO."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from pydantic import Field

from maverick_jax.ops.segment_sums import at_segments, segment_sums
from train.objectives.policy import losses
from train.objectives.policy.advantages import leave_one_out
from train.objectives.policy.methods.base import PolicyMethod, one_sided
from train.objectives.policy.methods.clipped import Grpo
from train.rollouts.source import Batch

Small = Annotated[float, Field(gt=0, lt=1)]


class Gspo(Grpo):
    """`kind: gspo`: one ratio per episode, the geometric mean over its tokens (arXiv 2507.18071)."""

    kind: Literal["gspo"] = "gspo"
    """One ratio per episode."""
    low: Small = 3e-4
    """As of `grpo`, for the episode's ratio."""
    high: Small = 4e-4
    """As of `grpo`, for the episode's ratio."""

    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        mean = self._mean(new, old, batch)
        ratio = lax.stop_gradient(mean) + new - lax.stop_gradient(new)  # its gradient is that of the token
        return losses.clipped(ratio, jnp.zeros_like(ratio), batch["advantages"], low=self.low, high=self.high)

    def clipped_away(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        ratio = jnp.exp(losses.log_ratio(self._mean(new, old, batch), jnp.zeros_like(new)))
        return one_sided(ratio, batch["advantages"], self.low, self.high)

    def _mean(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        """log of the episode's ratio at each of its tokens, float32[b, T]."""
        mask = (batch["loss_weights"] > 0).astype(jnp.float32)
        numbers, count = batch["segment_ids"] - 1, new.shape[-1]
        sums = segment_sums(mask * (new - old), numbers, count)
        lengths = segment_sums(mask, numbers, count)
        return at_segments(sums / jnp.maximum(lengths, 1), numbers)


class Rloo(PolicyMethod):
    """`kind: rloo`: each reward is compared with the mean of the others of its group (arXiv 2402.14740)."""

    kind: Literal["rloo"] = "rloo"
    """REINFORCE with the mean of the group's other rewards as the baseline."""
    normalization: losses.Normalization = "sequence_mean"

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return np.asarray(leave_one_out(jnp.asarray(rewards)[None]))[0]

    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return losses.plain(new, batch["advantages"])

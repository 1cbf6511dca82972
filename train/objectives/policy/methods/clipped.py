"""Methods with a clipped ratio per token and rewards compared within groups: GRPO and its kin."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from train.objectives.policy import losses
from train.objectives.policy.advantages import of_groups
from train.objectives.policy.methods.base import Clip, PolicyMethod, Positive, one_sided
from train.rollouts.source import Batch


class Grpo(PolicyMethod):
    """`kind: grpo`: group relative policy optimization (arXiv 2402.03300)."""

    kind: Literal["grpo"] = "grpo"
    """Group relative policy optimization."""
    normalization: losses.Normalization = "sequence_mean"
    low: Clip = 0.2
    """A token of negative advantage has no gradient once its probability is under 1 - low of what it was."""
    high: Positive = 0.2
    """A token of positive advantage has no gradient once its probability is above 1 + high of what it was."""
    scale: bool = True
    """Whether advantages are divided by the standard deviation of the group's rewards."""
    std_epsilon: Positive = 1e-4
    """Added to that standard deviation."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return np.asarray(of_groups(jnp.asarray(rewards)[None], scale=self.scale, epsilon=self.std_epsilon))[0]

    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return losses.clipped(new, old, batch["advantages"], low=self.low, high=self.high)

    def clipped_away(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return one_sided(jnp.exp(losses.log_ratio(new, old)), batch["advantages"], self.low, self.high)


class DrGrpo(Grpo):
    """`kind: dr_grpo`: GRPO without its biases of length and difficulty (arXiv 2503.20783)."""

    kind: Literal["dr_grpo"] = "dr_grpo"
    """GRPO without its biases."""
    normalization: losses.Normalization = "fixed"
    scale: bool = False


class Dapo(Grpo):
    """`kind: dapo`: GRPO that lets rare tokens grow faster and drops groups of equal rewards (arXiv 2503.14476)."""

    kind: Literal["dapo"] = "dapo"
    """GRPO with a higher upper limit and without groups of equal rewards."""
    normalization: losses.Normalization = "token_mean"
    high: Positive = 0.28
    drop_equal: bool = True


class Cispo(Grpo):
    """`kind: cispo`: the ratio weighs tokens and is limited, but no token loses its gradient (arXiv 2506.13585)."""

    kind: Literal["cispo"] = "cispo"
    """Limited weights instead of clipping."""
    normalization: losses.Normalization = "token_mean"
    high: Positive = 4.0
    """The largest weight of a token is 1 + high."""

    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return losses.weighted(new, old, batch["advantages"], high=self.high)

    def clipped_away(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return jnp.zeros(new.shape, bool)

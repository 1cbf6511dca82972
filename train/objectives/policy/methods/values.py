"""Proximal policy optimization with a value head."""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from train.objectives.policy import losses
from train.objectives.policy.methods.base import Clip, PolicyMethod, Positive, one_sided
from train.rollouts.source import Batch


class Ppo(PolicyMethod):
    """`kind: ppo`: proximal policy optimization (arXiv 1707.06347): a value head says what to expect at each token."""

    has_values: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    kind: Literal["ppo"] = "ppo"
    """Proximal policy optimization."""
    low: Clip = 0.2
    """As of `grpo`."""
    high: Positive = 0.2
    """As of `grpo`."""
    dual: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 3.0
    """The most, as a multiple of its advantage, that a token of negative advantage costs (arXiv 1912.09729); null: no
    limit."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token that the model writes."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalized advantage estimates (arXiv 1506.02438)."""
    value_weight: Positive = 0.5
    """Weight of the value head's loss."""
    value_clip: Positive = 0.2
    """A value's loss is the larger one of the value and of the value limited to what it was +- value_clip."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """The rewards: the value head's part is subtracted when it is known."""
        return rewards

    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return losses.clipped(new, old, batch["advantages"], low=self.low, high=self.high, dual=self.dual)

    def clipped_away(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        return one_sided(jnp.exp(losses.log_ratio(new, old)), batch["advantages"], self.low, self.high)

"""The base of policy methods: how rewards become advantages, and what a sampled token costs."""

import abc
from typing import Annotated, ClassVar

import jax
import numpy as np
from pydantic import Field

from maverick_jax.settings.section import Section
from train.objectives.policy import losses
from train.rollouts.source import Batch

Clip = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PolicyMethod(Section, abc.ABC):
    """The base of all methods."""

    kind: str
    has_values: ClassVar[bool] = False
    """Whether a value head is trained, from which advantages are estimated."""
    compares: ClassVar[bool] = True
    """Whether rewards are compared within groups, which then need two episodes or more."""
    normalization: losses.Normalization = "token_mean"
    """What the loss is a mean of. `token_mean`: all tokens that the model wrote; `sequence_mean`: episodes, each the
    mean of its tokens; `fixed`: the sum over tokens divided by the number of episodes times `rollouts.max_tokens`."""
    drop_equal: bool = False
    """Whether groups whose rewards are all equal, which teach nothing, are left out of the mean."""

    @abc.abstractmethod
    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """Advantages of the episodes of one group, float32[n], from their rewards, float32[n]."""

    @abc.abstractmethod
    def token_loss(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        """The loss of each label, float32[b, T], from its log-probability now and before; what is not of the model's
        tokens does not count. The batch has `advantages`, and `loss_weights` that are not 0 at the model's tokens."""

    def clipped_away(self, new: jax.Array, old: jax.Array, batch: Batch) -> jax.Array:
        """bool[b, T]: labels whose gradient the method's clipping removes."""
        return jax.numpy.zeros(new.shape, bool)


def one_sided(ratio: jax.Array, advantages: jax.Array, low: float, high: float) -> jax.Array:
    """Where a ratio has left [1 - low, 1 + high] in the direction that its advantage asks for."""
    return ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))

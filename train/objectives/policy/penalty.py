"""The penalty of violations: a multiplier that grows while more episodes break a rule than should (a Lagrangian)."""

from typing import Annotated, Self

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from pydantic import Field

from maverick_jax.settings.section import Section

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ViolationPenalty(Section):
    """`objective.penalty`: what an episode loses that breaks a rule of its environment's `policy`."""

    target: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """The share of episodes with a violation at which the multiplier stays as it is."""
    start: NotNegative = 1.0
    """The multiplier of the first set of episodes: what an episode with a violation loses of its reward."""
    rate: NotNegative = 0.2
    """How far the multiplier moves per update, times the distance of the share of episodes from `target`. 0: it
    stays."""
    most: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """The largest multiplier."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.start > self.most:
            raise ValueError(f"start: {self.start:g} is above most, {self.most:g}; expected at most that")
        return self

    def penalized(self, rewards: np.ndarray, violated: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
        """Rewards of episodes, float32[n], minus the multiplier where a rule was broken (bool[n])."""
        return rewards - np.asarray(multiplier, np.float32) * violated.astype(np.float32)

    def next(self, multiplier: jax.Array, violations: jax.Array) -> jax.Array:
        """The multiplier after an update on a set of which this share has violations; both float32[]."""
        return jnp.clip(multiplier + self.rate * (violations - self.target), 0, self.most)

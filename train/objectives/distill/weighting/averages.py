"""Exponential moving averages over updates, stored in the train state."""

from typing import Annotated

import jax.numpy as jnp
from pydantic import Field

from maverick_jax.settings.section import Section
from train.objectives.base import State
from train.objectives.distill.weighting.base import Scalars

TINY = 1e-30
"""Smallest divisor, to avoid division by 0."""


class Averages(Section):
    """Exponential moving averages, corrected for their start at 0. The state contains the uncorrected averages,
    float32[], and `ema_weight`, the uncorrected average of ones."""

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving averages per update."""

    def zeros(self, *names: str) -> State:
        return {name: jnp.zeros((), jnp.float32) for name in (*names, "ema_weight")}

    def means(self, state: State) -> Scalars:
        """The corrected averages by name; 0 before the first update."""
        weight = jnp.maximum(state["ema_weight"], TINY)
        return {name: value / weight for name, value in state.items() if name != "ema_weight"}

    def moved(self, state: State, new: Scalars) -> State:
        """The state after an update with the values `new`."""
        return {name: self.decay * state[name] + (1 - self.decay) * new.get(name, 1.0) for name in state}

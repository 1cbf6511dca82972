"""A weighting whose target moves from the student to the teacher during training (TAID, arXiv 2501.16937)."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from train.objectives.base import State
from train.objectives.distill.weighting.averages import TINY
from train.objectives.distill.weighting.base import Ramp, Scalars, Weighting, split


class Taid(Ramp, Weighting):
    """`weighting: {kind: taid}`: as a schedule, but the soft target has the logits (1 - t) * student + t * teacher. t
    grows faster the better the divergence improves."""

    kind: Literal["taid"] = "taid"
    interpolation_start: Annotated[float, Field(ge=0, le=1)] = 0.4
    """t before the first update."""
    interpolation_steps: Annotated[int, Field(ge=1)] = 1000
    """Number of updates after which t is 1 at the latest; t never falls below the line from its start to 1."""
    interpolation_rate: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """An update adds at most this fraction of 1 - t to t."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay per update of the moving average of the divergence's relative improvement."""

    def init(self) -> State:
        start = {"interpolation": self.interpolation_start, "improvement": 0.0, "last_divergence": 0.0}
        return {name: jnp.full((), value, jnp.float32) for name, value in start.items()}

    def controls(self, step: jax.Array, state: State) -> Scalars:
        start = self.interpolation_start
        floor = start + (1 - start) * (step.astype(jnp.float32) / self.interpolation_steps)
        t = jnp.minimum(jnp.maximum(floor, state["interpolation"]), 1.0)
        return {"share": self.at(step), "interpolation": t, "improvement": state["improvement"]}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        return split(controls["share"], weights, {})

    def advance(self, state: State, metrics: Scalars) -> State:
        last, now, t = state["last_divergence"], metrics["divergence"], metrics["interpolation"]
        relative = jnp.where(last > 0, (last - now) / jnp.maximum(last, TINY), 0.0)
        improvement = self.momentum * state["improvement"] + (1 - self.momentum) * relative
        t = t + self.interpolation_rate * jax.nn.sigmoid(improvement) * (1 - t)
        return {"interpolation": t, "improvement": improvement, "last_divergence": now}

"""Our default: how much a token is learned from the teacher follows what teacher and student say of it."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from train.objectives.next_token import State
from train.objectives.weighting.base import Ramp, Scalars, Weighting, split

Unit = Annotated[float, Field(ge=0, le=1)]
Power = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Codistill(Ramp, Weighting):
    """`weighting: {kind: codistill}`: per token, the soft target's share is clip(share * confidence * gap, low, high),
    the hard one's the rest."""

    kind: Literal["codistill"] = "codistill"
    start: Unit = 1.0
    """Before the first update."""
    confidence_power: Power = 0.25
    """confidence = p_teacher(label) ^ confidence_power; 0: every token alike."""
    gap_power: Power = 0.5
    """gap = min(1, p_teacher(label) / p_student(label)) ^ gap_power; 0: every token alike."""
    low: Unit = 0.0
    high: Unit = 1.0
    """The share is kept between the two."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low} is more than high ({self.high})")
        return self

    def controls(self, step: jax.Array, state: State) -> Scalars:
        return {"share": self.at(step)}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        confidence = jnp.exp(-self.confidence_power * terms.teacher_nll)
        gap = jnp.exp(self.gap_power * jnp.minimum(terms.nll - terms.teacher_nll, 0.0))
        share = jnp.clip(controls["share"] * confidence * gap, self.low, self.high)
        return split(share, weights, {"confidence": confidence, "gap": gap})

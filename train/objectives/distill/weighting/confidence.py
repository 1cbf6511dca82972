"""A weighting by the teacher's confidence."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from maverick_jax.settings.section import Section
from train.objectives.base import State
from train.objectives.distill.weighting.base import Ramp, Scalars, Weighting, split


class Confident(Section):
    """The teacher's confidence at a token, from 0 to 1."""

    by: Literal["label", "entropy"] = "entropy"
    """`label`: the teacher's probability of the label; `entropy`: 1 - entropy of the teacher / log of the vocabulary
    size."""
    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Exponent of the confidence; 0 treats every token alike."""

    def confidence(self, terms: Terms, controls: Scalars) -> jax.Array:
        """Confidence of c tokens, float32[c]."""
        if self.by == "label":
            return jnp.exp(-self.power * terms.teacher_nll)
        # rounding may raise the entropy of a uniform distribution above its maximum
        return jnp.maximum(1 - terms.teacher_entropy / controls["max_entropy"], 0.0) ** self.power


class Confidence(Ramp, Confident, Weighting):
    """`weighting: {kind: confidence}`: per token, the soft target has the share share * confidence and the hard target
    the rest."""

    kind: Literal["confidence"] = "confidence"

    def controls(self, step: jax.Array, state: State) -> Scalars:
        return {"share": self.at(step)}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        confidence = self.confidence(terms, controls)
        return split(controls["share"] * confidence, weights, {"confidence": confidence})

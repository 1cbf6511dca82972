"""A weighting that scales the divergence to the size of the cross-entropy."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from train.objectives.base import State
from train.objectives.distill.weighting.averages import TINY, Averages
from train.objectives.distill.weighting.base import Ramp, Scalars, Weighting

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Magnitude(Ramp, Averages, Weighting):
    """`weighting: {kind: magnitude}`: share * ratio * divergence + (1 - share) * cross-entropy, where the ratio is the
    moving average of the cross-entropy divided by the moving average of the divergence; 1 before the first update."""

    kind: Literal["magnitude"] = "magnitude"
    ratio_low: Positive = 0.01
    """Smallest ratio."""
    ratio_high: Positive = 100.0
    """Largest ratio."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.ratio_low > self.ratio_high:
            raise ValueError(f"ratio_low {self.ratio_low} is more than ratio_high ({self.ratio_high})")
        return self

    def init(self) -> State:
        return self.zeros("loss_ema", "divergence_ema")

    def controls(self, step: jax.Array, state: State) -> Scalars:
        means = self.means(state)
        ratio = means["loss_ema"] / jnp.maximum(means["divergence_ema"], TINY)
        ratio = jnp.where(state["ema_weight"] > 0, jnp.clip(ratio, self.ratio_low, self.ratio_high), 1.0)
        return {"share": self.at(step), "ratio": ratio, **means}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        share = controls["share"]
        return Weighed((1 - share) * weights, share * controls["ratio"] * weights, {})

    def reason(self, metrics: dict[str, float]) -> str:
        if not metrics["share"]:
            return super().reason(metrics)
        return "the divergence from the teacher is many times the cross-entropy"

    def advance(self, state: State, metrics: Scalars) -> State:
        return self.moved(state, {"loss_ema": metrics["loss"], "divergence_ema": metrics["divergence"]})

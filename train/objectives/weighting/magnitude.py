"""Both terms pull equally, however small the divergence is."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from train.objectives.next_token import State
from train.objectives.weighting.base import Ramp, Scalars, Weighting

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Magnitude(Ramp, Weighting):
    """`weighting: {kind: magnitude}`: share * ratio * divergence + (1 - share) * cross-entropy, where the ratio is that
    of the moving averages of cross-entropy and divergence; 1 before the first update."""

    kind: Literal["magnitude"] = "magnitude"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the moving averages, per update."""
    ratio_low: Positive = 0.01
    ratio_high: Positive = 100.0
    """The ratio is kept between the two."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.ratio_low > self.ratio_high:
            raise ValueError(f"ratio_low {self.ratio_low} is more than ratio_high ({self.ratio_high})")
        return self

    def init(self) -> State:
        """Sums that decay; `ema_weight` is what they would be of ones, which corrects their bias towards 0."""
        return {name: jnp.zeros((), jnp.float32) for name in ("loss_ema", "divergence_ema", "ema_weight")}

    def controls(self, step: jax.Array, state: State) -> Scalars:
        """`loss_ema` and `divergence_ema` are corrected, in nats; 0 before the first update."""
        weight = jnp.maximum(state["ema_weight"], jnp.finfo(jnp.float32).tiny)
        means = {name: state[name] / weight for name in ("loss_ema", "divergence_ema")}
        ratio = means["loss_ema"] / jnp.maximum(means["divergence_ema"], jnp.finfo(jnp.float32).tiny)
        ratio = jnp.where(state["ema_weight"] > 0, jnp.clip(ratio, self.ratio_low, self.ratio_high), 1.0)
        return {"share": self.at(step), "ratio": ratio, **means}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        share = controls["share"]
        return Weighed((1 - share) * weights, share * controls["ratio"] * weights, {})

    def advance(self, state: State, metrics: Scalars) -> State:
        new = {"loss_ema": metrics["loss"], "divergence_ema": metrics["divergence"], "ema_weight": 1.0}
        return {name: self.decay * state[name] + (1 - self.decay) * new[name] for name in state}

"""The default weighting: a token is learned from the teacher while the teacher is the better model, and from the text
afterwards.

The best target for a context lies between the label, which is unbiased but noisy, and the teacher, which is biased but
not noisy. The closer the student is, the more the teacher's bias matters. The teacher's lead over the student and its
calibration error are measured on labels, as means over many tokens. A share that follows the single label instead gives
a biased target: with E[a] the mean share in a context, token k is learned (1 + E[a] - a(k)) times too often.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from train.objectives.base import State
from train.objectives.distill.weighting.averages import TINY, Averages
from train.objectives.distill.weighting.base import Ramp, Scalars, Weighting, split
from train.objectives.distill.weighting.confidence import Confident

Unit = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Codistill(Ramp, Confident, Averages, Weighting):
    """`weighting: {kind: codistill}`: per token, the soft target has the share clip(share * gap, low, high) and the
    hard target the rest.

    gap = 1 / (1 + (doubt / confidence)^gap_power), doubt = (gap_scale + error) / lead. Two moving averages, in nats per
    token: lead, the student's loss on labels minus the teacher's; error, the teacher's loss minus its entropy, which is
    0 for a calibrated teacher. A negative lead gives a gap of 0; a negative error counts as 0.
    """

    kind: Literal["codistill"] = "codistill"
    start: Unit = 1.0
    """Value before the first update."""
    power: NotNegative = 0.5
    """Exponent of the confidence; 0 treats every token alike."""
    gap_scale: NotNegative = 0.1
    """Lead, in nats per token, at which a teacher without error and with full confidence has a gap of one half. 0: the
    gap is always 1."""
    gap_power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """How suddenly the gap falls to 0 as the lead shrinks."""
    low: Unit = 0.0
    """Smallest share of a token's soft target."""
    high: Unit = 1.0
    """Largest share of a token's soft target."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.low > self.high:
            raise ValueError(f"low {self.low} is more than high ({self.high})")
        return self

    def init(self) -> State:
        return self.zeros("lead_ema", "error_ema")

    def controls(self, step: jax.Array, state: State) -> Scalars:
        """`doubt` is 0 before the first update, and infinite while the teacher has no lead."""
        means = self.means(state)
        lead, error = means["lead_ema"], jnp.maximum(means["error_ema"], 0.0)
        doubt = jnp.where(lead > 0, (self.gap_scale + error) / jnp.maximum(lead, TINY), jnp.inf)
        known = (state["ema_weight"] > 0) & (self.gap_scale > 0)
        return {"share": self.at(step), "doubt": jnp.where(known, doubt, 0.0), **means}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        confidence = self.confidence(terms, controls)
        gap = 1 / (1 + (controls["doubt"] / jnp.maximum(confidence, TINY)) ** self.gap_power)
        share = jnp.clip(controls["share"] * gap, self.low, self.high)
        return split(share, weights, {"confidence": confidence, "gap": gap})

    def remarks(self, state: dict[str, float]) -> list[str]:
        lead, weight = state.get("lead_ema", 0.0), state.get("ema_weight", 0.0)
        if not weight or lead > 0 or not self.gap_scale:
            return []
        return [
            "when this checkpoint was saved, the teacher was behind the student in training, by "
            f"{-lead / weight:.2f} nats per token on average: its targets weighed {self.low:.2f}"
        ]

    def reason(self, metrics: dict[str, float]) -> str:
        lead = metrics.get("lead_ema", 0.0)
        if not metrics["share"] or lead > 0:
            return super().reason(metrics)
        return f"the teacher is behind the student, by {-lead:.2f} nats per token on average"

    def advance(self, state: State, metrics: Scalars) -> State:
        loss, entropy = metrics["teacher_loss"], metrics["teacher_entropy"]
        return self.moved(state, {"lead_ema": metrics["loss"] - loss, "error_ema": loss - entropy})

"""Our default: a token is learned from the teacher as long as the teacher is the better model, and from the text then.

The best target for a context is between the label, right on average but drawn by chance, and the teacher, steady but
wrong by something: the nearer the student, the more what the teacher is wrong by matters. How far it leads and how
wrong it is about itself are measured on the labels, as means over many tokens. A share that follows the single label
instead is a biased target: with E[a] the mean share in a context, token k is learned (1 + E[a] - a(k)) times too often.
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
    """`weighting: {kind: codistill}`: per token, the soft target's share is clip(share * gap, low, high), the hard
    one's the rest.

    gap = 1 / (1 + (doubt / confidence)^gap_power), doubt = (gap_scale + error) / lead. Moving averages, in nats per
    token: lead, the student's loss on the labels less the teacher's; error, the teacher's loss less its entropy, which
    is 0 for one that is right about its own sureness. A lead below 0 is a gap of 0, an error below 0 is none.
    """

    kind: Literal["codistill"] = "codistill"
    start: Unit = 1.0
    """Before the first update."""
    power: NotNegative = 0.5
    """Of the confidence; 0: every token alike."""
    gap_scale: NotNegative = 0.1
    """Nats per token: the lead at which an errorless teacher has half the share. 0: the gap is 1, whatever the lead."""
    gap_power: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0
    """How suddenly the gap closes."""
    low: Unit = 0.0
    """The least share of a token's soft target."""
    high: Unit = 1.0
    """The largest."""

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

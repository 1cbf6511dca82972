"""How a soft target (the teacher's distribution) and a hard one (the label) are weighed against each other: per token,
by the step, by what teacher and student say, or by how training goes. One class each, chosen by `weighting.kind`.
`docs/reference/distillation.md` has their formulas."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from train.objectives.distill.weighting.base import ALMOST_NOTHING, Ramp, Schedule, Weighting
from train.objectives.distill.weighting.codistill import Codistill
from train.objectives.distill.weighting.confidence import Confidence
from train.objectives.distill.weighting.magnitude import Magnitude
from train.objectives.distill.weighting.taid import Taid

__all__ = [
    "ALMOST_NOTHING",
    "AnyWeighting",
    "Codistill",
    "Confidence",
    "Magnitude",
    "Ramp",
    "Schedule",
    "Taid",
    "Weighting",
]


def _with_kind(section: Any) -> Any:
    """A section that does not say its kind is a schedule."""
    return {"kind": "schedule", **section} if isinstance(section, dict) else section


AnyWeighting = Annotated[
    Schedule | Magnitude | Confidence | Taid | Codistill, Field(discriminator="kind"), BeforeValidator(_with_kind)
]

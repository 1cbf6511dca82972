"""Weightings of soft targets (the teacher's distribution) and hard targets (labels) per token: by step, by the models'
outputs, or by the progress of training. One class per kind, chosen by `weighting.kind`;
`docs/reference/distillation.md` has the formulas."""

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
    """Makes a section without `kind` a schedule."""
    return {"kind": "schedule", **section} if isinstance(section, dict) else section


AnyWeighting = Annotated[
    Schedule | Magnitude | Confidence | Taid | Codistill, Field(discriminator="kind"), BeforeValidator(_with_kind)
]

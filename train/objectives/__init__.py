"""What a run optimizes: one file each, batch -> (loss, metrics), chosen by `objective.kind`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from train.objectives.distill.objective import Distill
from train.objectives.pretrain import Pretrain
from train.objectives.trajectory import TrajectoryTuning


def _with_kind(section: Any) -> Any:
    """A section that does not say its kind is about pretraining."""
    return {"kind": "pretrain", **section} if isinstance(section, dict) else section


AnyObjective = Annotated[
    Pretrain | Distill | TrajectoryTuning, Field(discriminator="kind"), BeforeValidator(_with_kind)
]

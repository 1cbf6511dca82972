"""What a run optimizes: one file each, batch -> (loss, metrics), chosen by `objective.kind`."""

from typing import Annotated

from maverick_jax.settings.kinds import Kinds
from train.objectives.base import Objective
from train.objectives.distill.objective import Distill
from train.objectives.pretrain import Pretrain
from train.objectives.trajectory import TrajectoryTuning

__all__ = ["OBJECTIVES", "AnyObjective", "Distill", "Objective", "Pretrain", "TrajectoryTuning"]

OBJECTIVES = Kinds("objective", Objective, default="pretrain")
for _kind in (Pretrain, Distill, TrajectoryTuning):
    OBJECTIVES.register(_kind)

AnyObjective = Annotated[Objective, OBJECTIVES]
"""A section of any kind; one without `kind` is Pretrain's."""

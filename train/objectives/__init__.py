"""Objectives, one file per kind, chosen by `objective.kind`. Each maps a batch to its loss and metrics."""

from typing import Annotated

from maverick_jax.settings.kinds import Kinds
from train.objectives.base import Objective
from train.objectives.distill.objective import Distill
from train.objectives.policy import Policy
from train.objectives.preference import Preference
from train.objectives.pretrain import Pretrain
from train.objectives.reward import Reward
from train.objectives.trajectory import TrajectoryTuning

__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "Distill",
    "Objective",
    "Policy",
    "Preference",
    "Pretrain",
    "Reward",
    "TrajectoryTuning",
]

OBJECTIVES = Kinds("objective", Objective, default="pretrain")
for _kind in (Pretrain, Distill, TrajectoryTuning, Preference, Reward, Policy):
    OBJECTIVES.register(_kind)

AnyObjective = Annotated[Objective, OBJECTIVES]
"""A section of any objective kind; without `kind` it is `pretrain`."""

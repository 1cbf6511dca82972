"""What a run optimises: one file each, batch -> (loss, metrics), chosen by `objective.kind`."""

from train.objectives.pretrain import Pretrain

Objective = Pretrain

"""The optimizers: one file each, chosen by `optimizer.kind`."""

from typing import Annotated

from train.optimizers.adamw import AdamW
from train.optimizers.base import OPTIMIZERS, OptimizerBase
from train.optimizers.muon import Muon

OptimizerConfig = Annotated[OptimizerBase, OPTIMIZERS]

__all__ = ["AdamW", "Muon", "OptimizerConfig"]

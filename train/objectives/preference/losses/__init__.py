"""Losses of pairs, one file per family; `docs/guides/alignment.md` has the formulas. One class per kind, chosen by
`objective.loss.kind`."""

from typing import Annotated

from maverick_jax.settings.kinds import Kinds
from train.objectives.preference.losses.base import PairLoss, SideSums
from train.objectives.preference.losses.logistic import Dmpo, Hinge, Robust, Sigmoid, SigmoidNorm
from train.objectives.preference.losses.reference_free import Orpo, Simpo
from train.objectives.preference.losses.squared import Ipo
from train.objectives.preference.losses.unpaired import ApoZero, Kto

__all__ = ["LOSSES", "AnyLoss", "PairLoss", "SideSums", "Sigmoid"]

LOSSES = Kinds("pair loss", PairLoss, default="sigmoid")
for _kind in (Sigmoid, SigmoidNorm, Hinge, Robust, Dmpo, Ipo, Simpo, Orpo, ApoZero, Kto):
    LOSSES.register(_kind)

AnyLoss = Annotated[PairLoss, LOSSES]
"""A section of any kind of pair loss; without `kind` it is `sigmoid`."""

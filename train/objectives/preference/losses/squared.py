"""The squared loss of identity preference optimization."""

from typing import Annotated, Literal

import jax
from pydantic import Field

from train.objectives.preference.losses.base import PairLoss, SideSums


class Ipo(PairLoss):
    """`kind: ipo`: the gap should be 1 / (2 beta) (arXiv 2310.12036)."""

    kind: Literal["ipo"] = "ipo"
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """The gap that is aimed at is 1 / (2 beta)."""
    length: Literal["mean", "sum"] = "mean"
    """Whether the gap is that of log-probabilities per token, as its authors recommend, or of whole sides."""

    def values(self, sides: SideSums) -> jax.Array:
        gap = sides.mean_gap if self.length == "mean" else sides.gap
        return (gap - 1 / (2 * self.beta)) ** 2

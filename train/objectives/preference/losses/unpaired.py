"""Losses of single sides, which are good or bad by themselves."""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from train.objectives.preference.losses.base import PairLoss, SideSums

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ApoZero(PairLoss):
    """`kind: apo_zero`: anchored preference optimization of single sides: good ones become more likely, bad ones less
    (arXiv 2408.06266). It is KTO's loss without its estimate of the divergence."""

    of_sides: ClassVar[bool] = True

    kind: Literal["apo_zero"] = "apo_zero"
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Factor of the changes in nats."""
    chosen_weight: Weight = 1.0
    """Weight of good sides."""
    rejected_weight: Weight = 1.0
    """Weight of bad sides."""

    def values(self, sides: SideSums) -> jax.Array:
        good, bad = (jax.nn.sigmoid(self.beta * (sides.change[..., i] - sides.divergence)) for i in (0, 1))
        return jnp.stack([self.chosen_weight * (1 - good), self.rejected_weight * bad], axis=-1)


class Kto(ApoZero):
    """`kind: kto`: Kahneman-Tversky optimization (arXiv 2402.01306): good sides should gain more than the model's
    divergence from the reference, bad ones less. The divergence is the mean change of answers to other prompts
    (`preferences.mismatched`) in the whole batch, at least 0."""

    needs_divergence: ClassVar[bool] = True

    kind: Literal["kto"] = "kto"  # type: ignore[assignment]
    """Kahneman-Tversky optimization."""

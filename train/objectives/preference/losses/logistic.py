"""Losses of the gap between both sides' changes, of DPO's family."""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from train.objectives.preference.losses.base import PairLoss, SideSums
from train.rollouts.source import Batch

Beta = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]


def smoothed(gap: jax.Array, noise: float) -> jax.Array:
    """-log sigmoid(gap), of which a share `noise` is that of the opposite preference."""
    loss = -jax.nn.log_sigmoid(gap)
    return loss if noise == 0 else (1 - noise) * loss - noise * jax.nn.log_sigmoid(-gap)


class Sigmoid(PairLoss):
    """`kind: sigmoid`: direct preference optimization (DPO, arXiv 2305.18290)."""

    kind: Literal["sigmoid"] = "sigmoid"
    beta: Beta = 0.1
    """How strongly the model is held to the reference: factor of the gap in nats."""
    label_smoothing: Noise = 0.0
    """Share of pairs that are assumed to be swapped (conservative DPO)."""

    def values(self, sides: SideSums) -> jax.Array:
        return smoothed(self.beta * sides.gap, self.label_smoothing)


class SigmoidNorm(PairLoss):
    """`kind: sigmoid_norm`: DPO with log-probabilities per token (arXiv 2411.15124), for sides of unequal length."""

    kind: Literal["sigmoid_norm"] = "sigmoid_norm"
    beta: Beta = 5.0
    """Factor of the gap in nats per token."""
    label_smoothing: Noise = 0.0
    """Share of pairs that are assumed to be swapped."""

    def values(self, sides: SideSums) -> jax.Array:
        return smoothed(self.beta * sides.mean_gap, self.label_smoothing)


class Hinge(PairLoss):
    """`kind: hinge`: no loss above a gap of 1 / beta (SLiC, arXiv 2305.10425)."""

    kind: Literal["hinge"] = "hinge"
    beta: Beta = 0.1
    """Factor of the gap in nats."""

    def values(self, sides: SideSums) -> jax.Array:
        return jax.nn.relu(1 - self.beta * sides.gap)


class Robust(PairLoss):
    """`kind: robust`: an unbiased estimate of DPO's loss if some pairs are swapped (arXiv 2403.00409)."""

    kind: Literal["robust"] = "robust"
    beta: Beta = 0.1
    """Factor of the gap in nats."""
    noise: Noise = 0.1
    """Share of pairs that are swapped."""

    def values(self, sides: SideSums) -> jax.Array:
        gap = self.beta * sides.gap
        right, wrong = jax.nn.log_sigmoid(gap), jax.nn.log_sigmoid(-gap)
        return (-(1 - self.noise) * right + self.noise * wrong) / (1 - 2 * self.noise)


class Dmpo(PairLoss):
    """`kind: dmpo`: DPO of several turns, of which later ones weigh less (arXiv 2406.14868)."""

    extra_fields: ClassVar[tuple[str, ...]] = ("pair_turns", "pair_turns_left")

    kind: Literal["dmpo"] = "dmpo"
    beta: Beta = 0.1
    """Factor of the gap in nats."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Discount per turn: turn k of T, from 0, weighs gamma^k (1 - gamma^(T - k)) / (1 - gamma^T); with 1, (T - k) / T.
    """

    def factors(self, batch: Batch) -> jax.Array:
        before, left = (batch[name].astype(jnp.float32) for name in self.extra_fields)
        turns = before + left + 1
        if self.gamma == 1:
            return (left + 1) / turns
        power = lambda n: jnp.exp(n * jnp.log(jnp.float32(self.gamma)))
        return power(before) * (1 - power(left + 1)) / (1 - power(turns))

    def values(self, sides: SideSums) -> jax.Array:
        return smoothed(self.beta * sides.gap, 0.0)

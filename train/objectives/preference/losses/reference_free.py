"""Losses of the model's own log-probabilities per token, without a reference."""

from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from pydantic import Field

from train.objectives.preference.losses.base import PairLoss, SideSums, apart

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Simpo(PairLoss):
    """`kind: simpo` (arXiv 2405.14734)."""

    needs_reference: ClassVar[bool] = False

    kind: Literal["simpo"] = "simpo"
    beta: Positive = 2.0
    """Factor of the gap in nats per token."""
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """The gap, times beta, from which on a pair counts as learned."""

    def values(self, sides: SideSums) -> jax.Array:
        return -jax.nn.log_sigmoid(self.beta * apart(sides.per_token(sides.log_prob)) - self.gamma)


class Orpo(PairLoss):
    """`kind: orpo`: the logarithm of the ratio of both sides' odds, beside the cross-entropy of the chosen side (arXiv
    2403.07691)."""

    needs_reference: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    nll: ClassVar[float] = 1.0

    kind: Literal["orpo"] = "orpo"
    weight: Positive = 0.1
    """Weight of the odds beside the cross-entropy."""

    def values(self, sides: SideSums) -> jax.Array:
        mean = sides.per_token(sides.log_prob)
        return -self.weight * jax.nn.log_sigmoid(apart(mean - log1mexp(mean)))


def log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - e^x) for x < 0, without loss of digits on either side of log 2 (Maechler 2012)."""
    near = x > -jnp.log(jnp.float32(2))
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1))), jnp.log1p(-jnp.exp(jnp.where(near, -1, x))))

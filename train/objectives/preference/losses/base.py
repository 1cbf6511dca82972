"""The base of losses of pairs. They are pure functions of sums over the tokens of each side."""

import abc
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from maverick_jax.settings.section import Section
from train.rollouts.source import Batch

CHOSEN, REJECTED = 0, 1
"""Places of the sides in the last axis of their sums."""


class SideSums(NamedTuple):
    """Sums over the tokens of both sides of pairs, float32[..., 2]: the chosen side first."""

    log_prob: jax.Array
    """Weighted log-probability in nats, by the model that is trained."""
    reference: jax.Array
    """The same by the reference; 0 where there is none."""
    count: jax.Array
    """Sum of the weights."""
    divergence: jax.Array | float = 0.0
    """How far the model is from the reference, in nats per answer: an estimate of the whole batch, without gradient; 0
    where nothing estimates it."""

    @property
    def change(self) -> jax.Array:
        """By how much the model's log-probability is above the reference's, in nats."""
        return self.log_prob - self.reference

    @property
    def gap(self) -> jax.Array:
        """The change of the chosen side minus that of the rejected one, float32[...]."""
        return apart(self.change)

    @property
    def mean_gap(self) -> jax.Array:
        """As `gap`, of changes per token."""
        return apart(self.per_token(self.change))

    def per_token(self, sums: jax.Array) -> jax.Array:
        """`sums` over `count`; 0 for a side without tokens."""
        return sums / jnp.where(self.count > 0, self.count, 1)


def apart(sides: jax.Array) -> jax.Array:
    """The chosen side of [..., 2] minus the rejected one."""
    return sides[..., CHOSEN] - sides[..., REJECTED]


class PairLoss(Section, abc.ABC):
    """The base of all losses of pairs."""

    kind: str
    needs_reference: ClassVar[bool] = True
    """Whether it compares with a reference."""
    of_sides: ClassVar[bool] = False
    """Whether it has a value for each side, so that it also learns from sides without another one."""
    needs_divergence: ClassVar[bool] = False
    """Whether it reads `SideSums.divergence`, which mismatched answers estimate."""
    needs_tokens: ClassVar[bool] = False
    """Whether both sides of a pair must have a token that counts."""
    nll: ClassVar[float] = 0.0
    """Weight of the mean cross-entropy of the chosen sides' tokens, which is a part of the loss."""
    extra_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of a batch that `factors` reads."""

    def factors(self, batch: Batch) -> jax.Array | None:
        """Factors of the tokens' weights in log-probabilities, float32[b, T]; None: 1."""
        return None

    @abc.abstractmethod
    def values(self, sides: SideSums) -> jax.Array:
        """The loss of each pair, float32[...], or of each side, float32[..., 2] if `of_sides`."""

"""What all weightings have in common, and the plain one: a share that depends on the step alone."""

import abc
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import pydantic
from pydantic import Field

from maverick_jax.ops.distillation import Terms, Weighed
from maverick_jax.settings.section import Section
from train.objectives.base import State

Scalars = dict[str, jax.Array]

ALMOST_NOTHING = 0.005
"""A soft weight below this is written as 0.00."""


class Weighting(Section, abc.ABC):
    """The base of the ways to weigh. Its controls and the parts of what it weighs are metrics of the step."""

    def init(self) -> State:
        """Scalars before the first step, float32[], by name; saved with the train state."""
        return {}

    @abc.abstractmethod
    def controls(self, step: jax.Array, state: State) -> Scalars:
        """What `weigh` needs to know of the step, float32[] by name, when `step` updates are done."""

    @abc.abstractmethod
    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        """Per row, arrays [c]; see `ops.distillation.Weigh`. `controls` also hold `max_entropy`, the logarithm of the
        vocabulary's size."""

    def advance(self, state: State, metrics: Scalars) -> State:
        """The state after a step with these metrics: `loss`, `divergence`, `teacher_loss`, the controls, ..."""
        return state

    def remarks(self, state: dict[str, float]) -> list[str]:
        """Sentences on the state in a checkpoint, for those who evaluate it. It may be that of another weighting."""
        return []

    def reason(self, metrics: dict[str, float]) -> str:
        """Why soft targets weigh almost nothing in an update with these metrics."""
        if not metrics["share"]:
            return "objective.weighting gives the teacher a share of 0 at this step"
        if metrics.get("confidence", 1.0) < ALMOST_NOTHING:
            return "the teacher is sure of almost no token"
        return "the teacher is hardly ahead of the student"


class Ramp(Section):
    """A number in [0, 1] that depends on the step alone."""

    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    """From `start` to `end` over `steps` updates: along a line, half a cosine, or at once after them; or `start` all
    the time."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Before the first update."""
    end: Annotated[float, Field(ge=0, le=1)] | None = None
    """After the last of `steps`; null for `constant`."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Updates over which it changes."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if (self.end is None) != (self.shape == "constant"):
            raise ValueError(f"shape {self.shape} {'has no' if self.shape == 'constant' else 'needs an'} end")
        return self

    def at(self, step: jax.Array) -> jax.Array:
        """float32[], when `step` updates are done."""
        part = jnp.minimum(step.astype(jnp.float32) / self.steps, 1.0)
        if self.end is None:
            return jnp.full_like(part, self.start)
        if self.shape == "cosine":
            part = 0.5 - 0.5 * jnp.cos(jnp.pi * part)
        elif self.shape == "step":
            part = jnp.floor(part)
        return self.start + (self.end - self.start) * part


class Schedule(Ramp, Weighting):
    """`weighting: {kind: schedule}`: the share alpha of the soft target, alpha * divergence + (1 - alpha) *
    cross-entropy, the same for every token."""

    kind: Literal["schedule"] = "schedule"

    def controls(self, step: jax.Array, state: State) -> Scalars:
        return {"share": self.at(step)}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        return split(controls["share"], weights, {})


def split(share: jax.Array, weights: jax.Array, parts: Scalars) -> Weighed:
    """`share` of the soft target and the rest of the hard one."""
    return Weighed((1 - share) * weights, share * weights, parts)

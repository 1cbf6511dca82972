"""The base of all weightings, and the simplest one: a share that depends only on the step."""

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
    """The base of all weightings. Its controls and the parts of its weights are metrics of the step."""

    def init(self) -> State:
        """Scalars before the first step, float32[], by name; saved with the train state."""
        return {}

    @abc.abstractmethod
    def controls(self, step: jax.Array, state: State) -> Scalars:
        """Inputs of `weigh` that are the same for all tokens, float32[] by name, after `step` updates."""

    @abc.abstractmethod
    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        """Weights of hard and soft targets, arrays [c] for c tokens; see `ops.distillation.Weigh`. `controls` also
        contains `max_entropy`, the logarithm of the vocabulary size."""

    def advance(self, state: State, metrics: Scalars) -> State:
        """The state after a step with these metrics, such as `loss`, `divergence`, `teacher_loss` and the controls."""
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
    """A number in [0, 1] that depends only on the step."""

    shape: Literal["constant", "linear", "cosine", "step"] = "constant"
    """Shape of the change from `start` to `end`: `linear` or `cosine` over `steps` updates, `step`: at once after them;
    `constant`: always `start`."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Value before the first update."""
    end: Annotated[float, Field(ge=0, le=1)] | None = None
    """Value after `steps` updates; null for `constant`."""
    steps: Annotated[int, Field(ge=1)] = 1000
    """Number of updates over which the value changes."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if (self.end is None) != (self.shape == "constant"):
            raise ValueError(f"shape {self.shape} {'has no' if self.shape == 'constant' else 'needs an'} end")
        return self

    def at(self, step: jax.Array) -> jax.Array:
        """The value after `step` updates, float32[]."""
        part = jnp.minimum(step.astype(jnp.float32) / self.steps, 1.0)
        if self.end is None:
            return jnp.full_like(part, self.start)
        if self.shape == "cosine":
            part = 0.5 - 0.5 * jnp.cos(jnp.pi * part)
        elif self.shape == "step":
            part = jnp.floor(part)
        return self.start + (self.end - self.start) * part


class Schedule(Ramp, Weighting):
    """`weighting: {kind: schedule}`: alpha * divergence + (1 - alpha) * cross-entropy, with the same share alpha of the
    soft target for every token."""

    kind: Literal["schedule"] = "schedule"

    def controls(self, step: jax.Array, state: State) -> Scalars:
        return {"share": self.at(step)}

    def weigh(self, terms: Terms, weights: jax.Array, controls: Scalars) -> Weighed:
        return split(controls["share"], weights, {})


def split(share: jax.Array, weights: jax.Array, parts: Scalars) -> Weighed:
    """`share` for the soft target and the rest for the hard target."""
    return Weighed((1 - share) * weights, share * weights, parts)

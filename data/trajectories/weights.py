"""How much each token of a run is learnt: a table by kind, times a weight of the run, unless its message says else."""

import math
from typing import Annotated

import numpy as np
import pydantic

from data.trajectories.kinds import TokenKind, token_kinds
from data.trajectories.trajectory import Outcome, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.section import Section
from maverick_jax.text.chat import Rendered

Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class KindWeights(Section):
    """Loss weight of a token by its kind (`TokenKind`)."""

    header: Weight = 0.0
    """Of control tokens that no assistant writes, and names of roles."""
    system: Weight = 0.0
    tools: Weight = 0.0
    user: Weight = 0.0
    image: Weight = 0.0
    observation: Weight = 0.0
    observation_error: Weight = 0.0
    thought: Weight = 1.0
    decision: Weight = 1.0
    """Of the first token of an assistant's turn, after its thought."""
    text: Weight = 1.0
    final_answer: Weight = 1.0
    call_syntax: Weight = 1.0
    call_name: Weight = 1.0
    call_arguments: Weight = 1.0
    failed_action: Weight = 0.0
    """Of calls whose result is an error."""
    recovery: Weight = 1.5
    """Of the next call with the same intent that succeeds."""
    control: Weight = 1.0
    """Of control tokens that the assistant writes, its stop tokens included."""

    def table(self) -> np.ndarray:
        """float32[kinds]: the weight of each TokenKind, by its number."""
        return np.array([getattr(self, kind.name.lower()) for kind in TokenKind], np.float32)


class OutcomeWeights(Section):
    """Weight of a whole run by how it ended."""

    success: Weight = 1.0
    """Of runs that say so, or whose reward reaches `threshold`."""
    failure: Weight = 1.0
    unknown: Weight = 1.0
    """Of runs with neither."""
    threshold: float = 1.0

    def of(self, outcome: Outcome) -> float:
        if outcome.success is not None:
            return self.success if outcome.success else self.failure
        if outcome.reward is None:
            return self.unknown
        return self.success if outcome.reward >= self.threshold else self.failure


def loss_weights(
    trajectory: Trajectory, rendered: Rendered, kinds: KindWeights | None = None, run_weight: float = 1.0
) -> np.ndarray:
    """float32[T]: how much token t counts where it is what is to be predicted.

    The weight of its kind, or its message's own (`Step.weight`, of all but the header and the declaration of tools),
    times `run_weight`. With every weight 1 all are 1. Raises InputError for a negative or infinite `run_weight`.
    """
    if not (math.isfinite(run_weight) and run_weight >= 0):
        raise InputError(f"run_weight: {run_weight}; expected a finite number of 0 or more")
    found = token_kinds(trajectory, rendered)
    weights = (kinds or KindWeights()).table()[found]
    said = (found != TokenKind.HEADER) & (found != TokenKind.TOOLS)
    for i, step in enumerate(trajectory.steps):
        if step.weight is not None:
            weights[said & (rendered.messages == i)] = step.weight
    return weights * np.float32(run_weight)

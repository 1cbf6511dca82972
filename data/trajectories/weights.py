"""How much each token of a run is learnt: a table by kind, times a weight of the run, unless its message says else."""

import math
from typing import Annotated

import numpy as np
import pydantic

from data.trajectories.kinds import TokenKind, token_kinds
from data.trajectories.trajectory import Outcome, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Rendered

Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class KindWeights(Section):
    """Loss weight of a token by its kind (`TokenKind`)."""

    header: Weight = 0.0
    """Of control tokens that no assistant writes, and names of roles."""
    system: Weight = 0.0
    """Of the policy."""
    tools: Weight = 0.0
    """Of the declaration of the tools."""
    user: Weight = 0.0
    """Of what users say."""
    image: Weight = 0.0
    """Of images."""
    observation: Weight = 0.0
    """Of results."""
    observation_error: Weight = 0.0
    """Of results that are errors."""
    thought: Weight = 1.0
    """Of what the assistant thinks, and says before calls."""
    decision: Weight = 1.0
    """Of the first token of an assistant's turn, after its thought."""
    text: Weight = 1.0
    """Of what the assistant says without calling."""
    final_answer: Weight = 1.0
    """Of that in its last message."""
    call_syntax: Weight = 1.0
    """Of brackets, quotes and fixed words of calls."""
    call_name: Weight = 1.0
    """Of names of tools in calls."""
    call_arguments: Weight = 1.0
    """Of their arguments."""
    failed_action: Weight = 0.0
    """Of calls whose result is an error."""
    recovery: Weight = 1.5
    """Of the next call with the same intent that succeeds."""
    control: Weight = 1.0
    """Of control tokens that the assistant writes, its stop tokens included."""
    document: Weight = 1.0
    """Of texts that are no runs, in data that has both."""

    def table(self) -> np.ndarray:
        """float32[kinds]: the weight of each TokenKind, by its number."""
        return np.array([getattr(self, kind.name.lower()) for kind in TokenKind], np.float32)


class OutcomeWeights(Section):
    """Weight of a whole run by how it ended."""

    success: Weight = 1.0
    """Of runs that say so, or whose reward reaches `threshold`."""
    failure: Weight = 1.0
    """Of runs that say they failed, or whose reward is less."""
    unknown: Weight = 1.0
    """Of runs with neither."""
    threshold: Annotated[float, pydantic.Field(allow_inf_nan=False)] = 1.0
    """The least reward of a success."""

    def of(self, outcome: Outcome) -> float:
        if outcome.success is not None:
            return self.success if outcome.success else self.failure
        if outcome.reward is None:
            return self.unknown
        return self.success if outcome.reward >= self.threshold else self.failure

    def of_many(self, success: np.ndarray, reward: np.ndarray) -> np.ndarray:
        """float32[n]: `of` outcomes given as success int8[n] (1, 0; -1: not said) and reward float64[n] (NaN: none)."""
        rewarded = np.where(np.isnan(reward), -1, reward >= self.threshold)
        found = np.where(success < 0, rewarded, success)
        return np.array([self.failure, self.success, self.unknown], np.float32)[found.astype(np.int64)]


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
    own = own_weights(trajectory, rendered, found)
    return weigh((kinds or KindWeights()).table(), found, own) * np.float32(run_weight)


def own_weights(trajectory: Trajectory, rendered: Rendered, kinds: np.ndarray) -> np.ndarray:
    """float32[T]: of each token the weight of its message, where that has one and it holds for the token; else NaN."""
    own = np.full(kinds.size, np.nan, np.float32)
    said = (kinds != TokenKind.HEADER) & (kinds != TokenKind.TOOLS)
    for i, step in enumerate(trajectory.steps):
        if step.weight is not None:
            own[said & (rendered.messages == i)] = step.weight
    return own


def weigh(table: np.ndarray, kinds: np.ndarray, own: np.ndarray) -> np.ndarray:
    """float32[T]: weight of each token by its kind, or its message's own where that is not NaN."""
    return np.where(np.isnan(own), table[kinds], own)

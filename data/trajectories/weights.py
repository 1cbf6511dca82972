"""Loss weights of a trajectory's tokens: a weight per token kind (or of the message), times a weight per trajectory."""

import math
from typing import Annotated

import numpy as np
import pydantic

from data.trajectories.kinds import TokenKind, token_kinds
from data.trajectories.trajectory import Outcome, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Rendered

NEVER = (TokenKind.IMAGE, TokenKind.LATENT)
"""Kinds whose loss weight is always 0, also where their message has a weight."""
Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class KindWeights(Section):
    """Loss weight of each token kind (`TokenKind`)."""

    header: Weight = 0.0
    """Control tokens that the assistant does not generate, and names of roles."""
    system: Weight = 0.0
    """The system message."""
    tools: Weight = 0.0
    """The declaration of the tools."""
    user: Weight = 0.0
    """User messages."""
    observation: Weight = 0.0
    """Results of successful calls."""
    observation_error: Weight = 0.0
    """Results of failed calls."""
    thought: Weight = 1.0
    """The assistant's reasoning, and its text before calls."""
    decision: Weight = 1.0
    """The first token of an assistant turn, after its thought."""
    text: Weight = 1.0
    """The assistant's text in messages without calls, except the last."""
    final_answer: Weight = 1.0
    """The assistant's text in its last message, if that has no calls."""
    call_syntax: Weight = 1.0
    """Brackets, quotes and fixed words of calls."""
    call_name: Weight = 1.0
    """Names of tools in calls."""
    call_arguments: Weight = 1.0
    """Arguments of calls."""
    failed_action: Weight = 0.0
    """Calls whose result is an error."""
    recovery: Weight = 1.5
    """The next successful call with the same intent as a failed one."""
    control: Weight = 1.0
    """Control tokens that the assistant generates, including stop tokens."""
    document: Weight = 1.0
    """Texts that are not trajectories, in data with both."""

    def table(self) -> np.ndarray:
        """float32[kinds]: the weight of each TokenKind, indexed by its number. Pictures and the places of
        latent thoughts are never learned."""
        learned = [kind not in NEVER and getattr(self, kind.name.lower()) for kind in TokenKind]
        return np.array(learned, np.float32)


class OutcomeWeights(Section):
    """Loss weight of a trajectory by its outcome."""

    success: Weight = 1.0
    """Trajectories marked as successful, or whose reward reaches `threshold`."""
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
        """float32[n]: `of` outcomes given as success int8[n] (1, 0; -1: unknown) and reward float64[n] (NaN: none)."""
        rewarded = np.where(np.isnan(reward), -1, reward >= self.threshold)
        found = np.where(success < 0, rewarded, success)
        return np.array([self.failure, self.success, self.unknown], np.float32)[found.astype(np.int64)]


def loss_weights(
    trajectory: Trajectory, rendered: Rendered, kinds: KindWeights | None = None, trajectory_weight: float = 1.0
) -> np.ndarray:
    """float32[T]: the loss weight of token t as a label.

    It is the weight of the token's kind, or of its message (`Step.weight`, which does not apply to headers, the
    declaration of tools, pictures and the places of latents), times `trajectory_weight`. If all weights are 1, all
    results are 1. Raises InputError for a negative or infinite `trajectory_weight`.
    """
    if not (math.isfinite(trajectory_weight) and trajectory_weight >= 0):
        raise InputError(f"trajectory_weight: {trajectory_weight}; expected a finite number of 0 or more")
    found = token_kinds(trajectory, rendered)
    own = own_weights(trajectory, rendered, found)
    return weigh((kinds or KindWeights()).table(), found, own) * np.float32(trajectory_weight)


def own_weights(trajectory: Trajectory, rendered: Rendered, kinds: np.ndarray) -> np.ndarray:
    """float32[T]: the weight of each token's message (`Step.weight`) if it has one and it applies to the token, else
    NaN."""
    own = np.full(kinds.size, np.nan, np.float32)
    applies = ~np.isin(kinds, (TokenKind.HEADER, TokenKind.TOOLS, *NEVER))
    for i, step in enumerate(trajectory.steps):
        if step.weight is not None:
            own[applies & (rendered.messages == i)] = step.weight
    return own


def weigh(table: np.ndarray, kinds: np.ndarray, own: np.ndarray) -> np.ndarray:
    """float32[T]: the weight of each token's kind, or `own` where it is not NaN."""
    return np.where(np.isnan(own), table[kinds], own)

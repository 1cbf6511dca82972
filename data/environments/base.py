"""The base of all environments. An episode begins with messages; the environment answers each message of the assistant,
until the episode ends with an outcome. `train.rollouts.episodes` runs a model in an environment."""

import abc
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol

from pydantic import Field

from data.trajectories.trajectory import Outcome, Step
from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Message, Tool


class Opening(NamedTuple):
    """The beginning of an episode."""

    steps: Sequence[Step]
    """The system message and the first message of the user."""
    task: str
    """Name of the task; several episodes may have the same one."""


class Feedback(NamedTuple):
    """The environment's answer to a message of the assistant."""

    steps: Sequence[Step] = ()
    """The results of the message's calls, one per call and in their order, or the user's next message."""
    outcome: Outcome | None = None
    """The outcome, if the episode has ended; else None."""


class Environment(Protocol):
    """An environment. It keeps the state of one episode at a time."""

    @property
    def name(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    def reset(self, seed: int) -> Opening:
        """Begins the episode of this seed. Equal seeds and equal messages give equal episodes."""
        ...

    def step(self, message: Message) -> Feedback:
        """Answers the assistant's `message`. A call that cannot be carried out gives a result with `error` set and
        never an exception."""
        ...


class EnvironmentConfig(Section, abc.ABC):
    """The base of all kinds of environments."""

    max_turns: Annotated[int, Field(ge=1)] = 16
    """Maximum number of assistant messages in an episode. An episode that has not ended by then has failed."""
    policy: str | None = None
    """Rules for its tools, a policy file or `package:NAME`. Reinforcement learning counts the episodes that break one,
    and reads it for `objective.penalty` and `objective.rollouts.gate`."""

    @abc.abstractmethod
    def make(self) -> Environment:
        """Creates a new environment, before its first episode."""

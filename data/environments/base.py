"""What an environment is: an episode begins with messages, goes on with what each of the assistant's messages brings
about, and ends with an outcome. `train.rollouts.episodes` lets a model play one."""

import abc
from collections.abc import Sequence
from typing import Annotated, NamedTuple, Protocol

from pydantic import Field

from data.trajectories.trajectory import Outcome, Step
from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Message, Tool


class Opening(NamedTuple):
    """How an episode begins."""

    steps: Sequence[Step]
    """The system message and what the user says first."""
    task: str
    """Name of what is to be done; several episodes may share one."""


class Feedback(NamedTuple):
    """What follows a message of the assistant."""

    steps: Sequence[Step] = ()
    """Results of its calls, one for each in their order, or what the user says."""
    outcome: Outcome | None = None
    """How the episode ended; None: it goes on."""


class Environment(Protocol):
    """One world. It holds the state of one episode at a time."""

    @property
    def name(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    def reset(self, seed: int) -> Opening:
        """Begins the episode of this seed: equal seeds and equal messages give equal episodes."""
        ...

    def step(self, message: Message) -> Feedback:
        """What `message`, the assistant's, brings about. A call that cannot be carried out, whatever it asks for, gives
        a result with `error` set and never an exception."""
        ...


class EnvironmentConfig(Section, abc.ABC):
    """The base of the kinds of environments."""

    max_turns: Annotated[int, Field(ge=1)] = 16
    """Messages of the assistant in one episode, at most; an episode that is not over then has failed."""

    @abc.abstractmethod
    def make(self) -> Environment:
        """An environment of its own, without an episode."""

"""What a task is: data and grader at once. `train.evaluation.tasks` asks a model."""

import abc
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Conversation, Reply


class Example(NamedTuple):
    """One question."""

    id: str
    """Unique in its task."""
    prompt: str | Conversation
    """A text to go on from, or a conversation whose next message is asked for."""
    references: tuple[str, ...]
    """Right answers."""


class Grade(NamedTuple):
    score: float
    """From 0 to 1."""
    reason: str
    """Why not 1, for a person; empty for 1."""


class TaskInfo(NamedTuple):
    """Where the examples come from."""

    source: str
    license: str
    """As its SPDX name where it has one; `unknown`."""


class Task(Section, abc.ABC):
    """The base of the kinds of tasks."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """How many examples are asked, from the first on. null: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of an answer, at most."""

    @property
    @abc.abstractmethod
    def info(self) -> TaskInfo: ...

    @abc.abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always the same ones in the same order. Raises InputError, which names file and line."""

    @abc.abstractmethod
    def grade(self, example: Example, reply: Reply) -> Grade:
        """How good a reply is to an example of this task. Any reply may come."""

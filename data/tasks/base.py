"""The base of all tasks. A task is a data set with a grader; `train.evaluation.tasks` runs a model on it."""

import abc
from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import Field

from maverick_jax.settings.section import Section
from maverick_jax.text.chat import Conversation, Reply


class Example(NamedTuple):
    """One example of a task."""

    id: str
    """Unique name in its task."""
    prompt: str | Conversation
    """A text to continue, or a conversation whose next message is the answer."""
    references: tuple[str, ...]
    """Correct answers."""


class Grade(NamedTuple):
    """The grade of one answer."""

    score: float
    """Between 0 and 1."""
    reason: str
    """An explanation of a score below 1; empty for 1."""


class TaskInfo(NamedTuple):
    """Source and license of the examples."""

    source: str
    license: str
    """SPDX name of the license if it has one; `unknown` if the license is not known."""


class Task(Section, abc.ABC):
    """The base of all kinds of tasks."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Number of examples to run, from the first on. null: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 64
    """Maximum number of tokens in an answer."""

    @property
    @abc.abstractmethod
    def info(self) -> TaskInfo: ...

    @abc.abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always the same and in the same order. Raises InputError, which names file and line."""

    @abc.abstractmethod
    def grade(self, example: Example, reply: Reply) -> Grade:
        """Grades a reply to an example of this task. It must accept any reply."""

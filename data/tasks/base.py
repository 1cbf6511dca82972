"""The base of all tasks. A task is a data set with a grader; `train.evaluation.tasks` runs a model on it."""

import abc
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from data.graders.base import Grade
from data.graders.choices import grade_likelihoods
from data.graders.figures import Figure
from data.graders.grids import Grid
from maverick_jax.settings.section import Section
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Conversation, Reply


class Example(NamedTuple):
    """One example of a task."""

    id: str
    """Unique name in its task."""
    prompt: str | Conversation
    """A text to continue, or a conversation whose next message is the answer."""
    references: tuple[str, ...]
    """Correct answers."""
    choices: tuple[str, ...] = ()
    """Continuations of the prompt, of which the likeliest is the answer; `references` is then the number of the right
    one. Empty: the model writes its answer."""
    group: str | None = None
    """The source that it shares with other examples, such as their template; None: a source of its own."""
    facts: Mapping[str, Any] = MappingProxyType({})
    """What its grader needs besides."""
    images: tuple[pathlib.Path, ...] = ()
    """Pictures that are shown before the last message's text."""


class Graded(NamedTuple):
    """An example with what the model replied and its grade."""

    example: Example
    reply: Reply | CallError
    grade: Grade


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

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """Texts at which an answer is over. What a model wrote is kept whole, with them."""
        return ()

    @property
    def runs_code(self) -> bool:
        """Whether its grader runs programs that the model writes."""
        return False

    def require(self) -> None:
        """Raises InputError if what the grader needs is not installed or does not work here."""

    @abc.abstractmethod
    def examples(self) -> Sequence[Example]:
        """All examples, always the same and in the same order. Raises InputError, which names file and line."""

    def examples_for(self, tokenizer: Tokenizer) -> Sequence[Example]:
        """The same, for tasks whose examples depend on how text becomes tokens, such as their lengths."""
        return self.examples()

    @abc.abstractmethod
    def grade(self, example: Example, reply: Reply) -> Grade:
        """Grades a reply to an example of this task. It must accept any reply."""

    def grade_choice(self, example: Example, log_probs: Sequence[float]) -> Grade:
        """Grades the log-probabilities of an example's choices."""
        return grade_likelihoods(example.choices, log_probs, int(example.references[0]))

    def figures(self, graded: Sequence[Graded]) -> dict[str, Figure]:
        """Further figures of the whole task by name, such as of some of its examples."""
        return {}

    def grid(self, graded: Sequence[Graded]) -> Grid | None:
        """Scores by length of the context and depth in it, for tasks that have them."""
        return None

"""An environment behind limits: it may hang, raise, or answer with anything, and costs at most its episode."""

import queue
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from data.environments import Environment, Feedback, Opening
from data.trajectories import Outcome, Step
from maverick_jax.text.chat import Message, Role, Tool

CUT = " [cut after {most:,} of {length:,} characters]"


class EnvironmentFailed(Exception):
    """The environment broke its promises; the text says how."""


class GuardedEnvironment:
    """`environment`, whose every answer is checked. Raises EnvironmentFailed, and nothing else."""

    def __init__(self, make: Callable[[], Environment], *, time_limit: float | None, most_characters: int):
        """time_limit: seconds for each answer, and all come from one thread; None: no limit, and no thread. A call that
        hangs keeps the thread, which ends with the process. most_characters: of each message; longer ones are cut."""
        self._thread = None if time_limit is None else AnsweringThread(time_limit)
        self._most, self.cut = most_characters, 0
        """`cut`: messages that were cut."""
        self._environment: Any = None
        self.name, self.tools = self._asked(lambda: self._made(make))

    def reset(self, seed: int) -> Opening:
        opening = self._asked(lambda: self._environment.reset(seed))
        if not isinstance(opening, Opening) or not isinstance(opening.task, str):
            raise EnvironmentFailed(f"reset returned {type(opening).__name__}; expected an Opening")
        steps = self._checked(opening.steps, (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL))
        if not steps:
            raise EnvironmentFailed("reset returned no message; expected one or more")
        return Opening(steps, opening.task)

    def step(self, message: Message) -> Feedback:
        feedback = self._asked(lambda: self._environment.step(message))
        if not isinstance(feedback, Feedback):
            raise EnvironmentFailed(f"step returned {type(feedback).__name__}; expected a Feedback")
        outcome, steps = feedback.outcome, self._checked(feedback.steps, (Role.USER, Role.TOOL))
        if outcome is not None and not isinstance(outcome, Outcome):
            raise EnvironmentFailed(f"step returned {type(outcome).__name__} as the outcome; expected an Outcome")
        if outcome is None and not steps:
            raise EnvironmentFailed("step returned neither a message nor an outcome")
        return Feedback(steps, outcome)

    def _made(self, make: Callable[[], Any]) -> tuple[str, tuple[Tool, ...]]:
        """Makes the environment. Returns its name and its tools."""
        self._environment = make()
        tools = tuple(self._environment.tools)
        if not all(isinstance(tool, Tool) for tool in tools):
            raise EnvironmentFailed("its tools are of another type than Tool")
        return str(getattr(self._environment, "name", "environment"))[:80], tools

    def _checked(self, steps: Any, roles: Sequence[Role]) -> list[Step]:
        """The messages, of at most so many characters. Raises EnvironmentFailed for a role that an environment does not
        have."""
        if isinstance(steps, str) or not isinstance(steps, Sequence) or not all(isinstance(s, Step) for s in steps):
            raise EnvironmentFailed(f"messages are {type(steps).__name__}; expected a list of Step")
        if wrong := [step.message.role for step in steps if step.message.role not in roles]:
            raise EnvironmentFailed(
                f"a message of role {wrong[0].header}; expected {roles[0].header} or another result"
            )
        return [self._short(step) for step in steps]

    def _short(self, step: Step) -> Step:
        message = step.message
        text = message.text
        if len(text) <= self._most:
            return step
        self.cut += 1
        said = text[: self._most] + CUT.format(most=self._most, length=len(text))
        short = Message(message.role, said, message.calls, message.thought, message.call_id)
        return Step(short, step.error, step.weight, step.reward)

    def _asked(self, question: Callable[[], Any]) -> Any:
        return _answer(question) if self._thread is None else self._thread.ask(question)


class AnsweringThread:
    """Answers questions one by one, each within a time limit. The thread ends when this object is no longer used."""

    def __init__(self, time_limit: float):
        """time_limit: seconds for each answer."""
        self._limit, self._hangs = time_limit, False
        self._questions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, EnvironmentFailed | None]] = queue.SimpleQueue()
        threading.Thread(
            target=_answer_all, args=(self._questions, self._answers), name="environment", daemon=True
        ).start()
        weakref.finalize(self, self._questions.put, None)

    def ask(self, question: Callable[[], Any]) -> Any:
        """The answer. Raises EnvironmentFailed if the question does, or if this or an earlier one takes too long."""
        if self._hangs:
            raise EnvironmentFailed("an earlier answer did not come")
        self._questions.put(question)
        try:
            found, error = self._answers.get(timeout=self._limit)
        except queue.Empty:
            self._hangs = True  # what comes too late must answer nothing else
            raise EnvironmentFailed(f"no answer within {self._limit:g} seconds") from None
        if error is not None:
            raise error
        return found


def _answer_all(questions: queue.SimpleQueue, answers: queue.SimpleQueue) -> None:
    while (question := questions.get()) is not None:
        try:
            answer = (_answer(question), None)
        except EnvironmentFailed as error:
            answer = (None, error)
        question = None  # it refers to the environment, whose end also ends this thread
        answers.put(answer)
        answer = None


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except EnvironmentFailed:
        raise
    except Exception as error:  # whatever it raises, only its episode fails
        raise EnvironmentFailed(f"{type(error).__name__}: {str(error)[:200]}") from error

"""An environment behind limits: it may hang, raise, or answer with anything, and costs at most its episode."""

import queue
import threading
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
        """time_limit: seconds for each answer; None: no limit. A call that hangs keeps its thread, which ends with the
        process. most_characters: of each message; longer ones are cut."""
        self._limit, self._most, self.cut = time_limit, most_characters, 0
        """`cut`: messages that were cut."""
        self._environment: Any = self._asked(make)
        self.name: str = str(getattr(self._environment, "name", "environment"))[:80]
        self.tools: tuple[Tool, ...] = self._tools()

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

    def _tools(self) -> tuple[Tool, ...]:
        tools = self._asked(lambda: tuple(self._environment.tools))
        if not all(isinstance(tool, Tool) for tool in tools):
            raise EnvironmentFailed("its tools are of another type than Tool")
        return tools

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
        """The environment's answer, from a thread of its own if there is a time limit."""
        if self._limit is None:
            return _answer(question)
        answers: queue.SimpleQueue[tuple[Any, EnvironmentFailed | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((_answer(question), None))
            except EnvironmentFailed as error:
                answers.put((None, error))

        threading.Thread(target=ask, name="environment", daemon=True).start()
        try:
            found, error = answers.get(timeout=self._limit)
        except queue.Empty:
            raise EnvironmentFailed(f"no answer within {self._limit:g} seconds") from None
        if error is not None:
            raise error
        return found


def _answer(question: Callable[[], Any]) -> Any:
    try:
        return question()
    except EnvironmentFailed:
        raise
    except Exception as error:  # whatever it raises, only its episode fails
        raise EnvironmentFailed(f"{type(error).__name__}: {str(error)[:200]}") from error

"""The calls of a trajectory, which of them failed, and which recovered a failure. Pure functions of the normal form.

A call fails if its result is an error. Its recovery is the next successful call of a later message with the same
intent: of the same tool and, if the tool takes a command line (a text argument `command`), with the same first word. A
parallel call is no recovery, since the failure was not known when it was made. Failed calls in between do not end the
search, so one call may recover several failures.
"""

import dataclasses
from collections.abc import Sequence

from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Role, ToolCall


@dataclasses.dataclass(frozen=True)
class Action:
    """One call of a trajectory."""

    step: int
    """Index of the message with the call."""
    position: int
    """Index of the call within that message."""
    call: ToolCall
    result: int | None
    """Index of the message with its result; None if the trajectory ends before the result."""
    failed: bool
    recovered_by: int | None = None
    """For a failed call: index (in the list of actions) of its recovery, or None."""
    recovers: bool = False
    """Whether it recovers at least one failure."""


def find_actions(trajectory: Trajectory) -> list[Action]:
    """Every call in order, with its result, whether it failed, and its recovery."""
    actions = _answered(trajectory)
    recovery = _recoveries(actions)
    recovering = set(recovery.values())
    return [
        dataclasses.replace(action, recovered_by=recovery.get(i), recovers=i in recovering)
        for i, action in enumerate(actions)
    ]


def intent(call: ToolCall) -> tuple[str, ...]:
    """Equal for calls with the same intent: the tool's name and the first word of its command line, if any."""
    command = call.arguments.get("command")
    words = command.split(maxsplit=1)[:1] if isinstance(command, str) else []
    return (call.name, *words)


def _answered(trajectory: Trajectory) -> list[Action]:
    """Every call with its result. Results follow their calls in order, which `Conversation` has checked."""
    actions: list[Action] = []
    waiting: list[int] = []
    for i, step in enumerate(trajectory.steps):
        if step.message.role is Role.TOOL:
            at = waiting.pop(0)
            actions[at] = dataclasses.replace(actions[at], result=i, failed=step.error)
            continue
        waiting = list(range(len(actions), len(actions) + len(step.message.calls)))
        actions += [Action(i, position, call, None, False) for position, call in enumerate(step.message.calls)]
    return actions


def _recoveries(actions: Sequence[Action]) -> dict[int, int]:
    """Index of each recovered action -> index of its recovery, in one pass from the end."""
    found: dict[int, int] = {}
    next_success: dict[tuple[str, ...], int] = {}
    in_message: dict[tuple[str, ...], int] = {}  # the first successes of the message that is being looked at
    for i in reversed(range(len(actions))):
        action = actions[i]
        key = intent(action.call)
        if i + 1 == len(actions) or action.step != actions[i + 1].step:
            next_success |= in_message
            in_message = {}
        if not action.failed:
            if action.result is not None:
                in_message[key] = i
        elif key in next_success:
            found[i] = next_success[key]
    return found

"""What an agent did: its calls, which of them failed, and which made good a failure. Pure functions of the normal form.

A call failed when its result is an error. Its recovery is the next call with the same intent that succeeded: of the
same tool and, where the tool takes a command line (a text argument `command`), with the same first word of it. Calls
that fail in between do not end the search, so that one call may make good several failures.
"""

import dataclasses
from collections.abc import Sequence

from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Role, ToolCall


@dataclasses.dataclass(frozen=True)
class Action:
    """One call of a run."""

    step: int
    """Index of the message that it stands in."""
    position: int
    """Which of that message's calls."""
    call: ToolCall
    result: int | None
    """Index of the message with its result; None: the run ended before."""
    failed: bool
    recovered_by: int | None = None
    """Of a failed one: index (in the list of actions) of its recovery, if there is one."""
    recovers: bool = False
    """It makes good one failure or more."""


def find_actions(trajectory: Trajectory) -> list[Action]:
    """Every call in order, with its result, whether it failed, and what made that good."""
    actions = _answered(trajectory)
    recovery = _recoveries(actions)
    recovering = set(recovery.values())
    return [
        dataclasses.replace(action, recovered_by=recovery.get(i), recovers=i in recovering)
        for i, action in enumerate(actions)
    ]


def intent(call: ToolCall) -> tuple[str, ...]:
    """What two calls share that try to do the same."""
    command = call.arguments.get("command")
    words = command.split(maxsplit=1)[:1] if isinstance(command, str) else []
    return (call.name, *words)


def _answered(trajectory: Trajectory) -> list[Action]:
    """Results answer the calls before them in order: `Conversation` has seen to that."""
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
    """Of each failed action that was made good, the index of the action that did; in one pass from the end."""
    found: dict[int, int] = {}
    next_success: dict[tuple[str, ...], int] = {}
    for i in reversed(range(len(actions))):
        action = actions[i]
        key = intent(action.call)
        if not action.failed:
            if action.result is not None:
                next_success[key] = i
        elif key in next_success:
            found[i] = next_success[key]
    return found

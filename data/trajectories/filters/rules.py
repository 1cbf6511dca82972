"""Filter rules that look at one trajectory alone. Each returns the reason to drop it, or None."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

from data.trajectories.actions import Action, find_actions
from data.trajectories.filters.config import FilterConfig
from data.trajectories.filters.declared import violation
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall, values

TokenCount = Callable[[Trajectory], int]
"""Number of tokens of a rendered trajectory. Raises InputError if it cannot be rendered."""
MAX_PERIOD = 4
"""Longest sequence of calls whose repetition counts as a loop."""


@dataclasses.dataclass(frozen=True)
class RuleInput:
    """A trajectory, and the data that the rules need."""

    trajectory: Trajectory
    actions: Sequence[Action]
    config: FilterConfig
    count_tokens: TokenCount | None

    @property
    def turns(self) -> list[Step]:
        """The assistant's messages."""
        return [step for step in self.trajectory.steps if step.message.role is Role.ASSISTANT]


def reasons(trajectory: Trajectory, config: FilterConfig, count_tokens: TokenCount | None = None) -> dict[str, str]:
    """Rule -> reason to drop the trajectory, in the order of the rules; empty if it passes."""
    case = RuleInput(trajectory, find_actions(trajectory), config, count_tokens)
    found = {name: RULES[name](case) for name in config.active if name in RULES}
    return {name: reason for name, reason in found.items() if reason is not None}


def call_key(call: ToolCall) -> str:
    """A text that is equal for equal calls, ignoring ids and the order of arguments."""
    return values.write([call.name, _sorted(call.arguments)])


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def characters(trajectory: Trajectory) -> int:
    """Number of characters of texts, thoughts and calls, without declared tools."""
    return sum(_characters(step.message) for step in trajectory.steps)


def _characters(message: Message) -> int:
    called = sum(len(call.name) + len(values.write(call.arguments)) for call in message.calls)
    return len(message.text) + len(message.thought) + called


def reward(trajectory: Trajectory) -> float | None:
    """The reward, or `success` as 1 or 0 without one; None if neither is known."""
    outcome = trajectory.outcome
    if outcome.reward is not None or outcome.success is None:
        return outcome.reward
    return float(outcome.success)


def succeeded(trajectory: Trajectory) -> bool:
    """Whether the trajectory is known to have succeeded: by `success`, or else by a reward of at least 1."""
    outcome = trajectory.outcome
    if outcome.success is not None:
        return outcome.success
    return outcome.reward is not None and outcome.reward >= 1


# ---- the rules -----------------------------------------------------------------------------------------------------


def _reward(case: RuleInput) -> str | None:
    least, found = case.config.min_reward, reward(case.trajectory)
    if least is None or (found is not None and found >= least):
        return None
    return "no reward" if found is None else f"reward {found:g} is less than {least:g}"


def _turns(case: RuleInput) -> str | None:
    config, turns = case.config, len(case.turns)
    if turns < config.min_turns:
        return f"{turns:,} turns, less than {config.min_turns:,}"
    if config.max_turns is not None and turns > config.max_turns:
        return f"{turns:,} turns, more than {config.max_turns:,}"
    return None


def _length(case: RuleInput) -> str | None:
    config = case.config
    if config.max_characters is not None and (found := characters(case.trajectory)) > config.max_characters:
        return f"{found:,} characters, more than {config.max_characters:,}"
    if config.max_tokens is not None and case.count_tokens is not None:
        try:
            found = case.count_tokens(case.trajectory)
        except InputError as error:
            return f"cannot be rendered: {error}"
        if found > config.max_tokens:
            return f"{found:,} tokens, more than {config.max_tokens:,}"
    return None


def _empty_final(case: RuleInput) -> str | None:
    if any(action.result is None for action in case.actions):
        return "ends in a call without a result"
    last = case.turns[-1].message
    if not last.calls and not last.text.strip():
        return "the last assistant message has no text and no call"
    return None


def _malformed_calls(case: RuleInput) -> str | None:
    if not case.trajectory.tools:  # without declarations there is nothing to check
        return None
    tools = {tool.name: tool for tool in case.trajectory.tools}
    for action in case.actions:
        if not action.failed and (reason := violation(action.call, tools)):
            return f"messages[{action.step}]: {reason}"
    return None


def _loops(case: RuleInput) -> str | None:
    times = case.config.loops
    actions = [action for action in case.actions if action.result is not None]
    start = find_loop([_done(case, action) for action in actions], times) if times is not None else None
    if start is None:
        return None
    begin, period = start
    repeated = f"{actions[begin].call.name[:80]!r}"
    repeated = f"a sequence of {period} calls from {repeated} on" if period > 1 else repeated
    return f"messages[{actions[begin].step}]: {repeated} is repeated at least {times} times with the same result"


def find_loop(done: Sequence[Hashable], times: int) -> tuple[int, int] | None:
    """(begin, period) of the first sequence of `period` items (at most `MAX_PERIOD`) that is repeated `times` times in
    a row; None if there is none."""
    for period in range(1, MAX_PERIOD + 1):
        same = 0
        for i in range(period, len(done)):
            same = same + 1 if done[i] == done[i - period] else 0
            if same == period * (times - 1):
                return i + 1 - period * times, period
    return None


def _done(case: RuleInput, action: Action) -> tuple[str, str, bool]:
    """The call and its result, for comparison."""
    assert action.result is not None
    step = case.trajectory.steps[action.result]
    return call_key(action.call), step.message.text, step.error


def _unrecovered_failures(case: RuleInput) -> str | None:
    most = case.config.unrecovered_failures
    failures = sum(action.failed and action.recovered_by is None for action in case.actions)
    if most is None or failures <= most or succeeded(case.trajectory):
        return None
    return f"{failures:,} failed calls without a recovery, more than {most:,}"


RULES: dict[str, Callable[[RuleInput], str | None]] = {
    "reward": _reward,
    "turns": _turns,
    "length": _length,
    "empty_final": _empty_final,
    "malformed_calls": _malformed_calls,
    "loops": _loops,
    "unrecovered_failures": _unrecovered_failures,
}

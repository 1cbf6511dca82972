"""Rules that judge a run by itself. Each returns why the run is to be left out, or None."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

from data.trajectories.actions import Action, find_actions
from data.trajectories.filters.config import FilterConfig
from data.trajectories.filters.declared import misfit
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Message, Role, ToolCall, values

TokenCount = Callable[[Trajectory], int]
"""Of the rendered run. Raises InputError where it cannot be rendered."""
MAX_PERIOD = 4
"""Calls of a round that is looked for in loops."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A run before its judges."""

    run: Trajectory
    actions: Sequence[Action]
    config: FilterConfig
    count_tokens: TokenCount | None

    @property
    def turns(self) -> list[Step]:
        """What the assistant said."""
        return [step for step in self.run.steps if step.message.role is Role.ASSISTANT]


def reasons(run: Trajectory, config: FilterConfig, count_tokens: TokenCount | None = None) -> dict[str, str]:
    """By rule, in the order they are asked: why `run` is to be left out. Empty: it passes."""
    case = Case(run, find_actions(run), config, count_tokens)
    found = {name: RULES[name](case) for name in config.active if name in RULES}
    return {name: reason for name, reason in found.items() if reason is not None}


def call_key(call: ToolCall) -> str:
    """Equal for calls that are the same but for ids and the order of arguments."""
    return values.write([call.name, _sorted(call.arguments)])


def _sorted(value):
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def characters(run: Trajectory) -> int:
    """Of all that is said, thought and called; declared tools left out."""
    return sum(_characters(step.message) for step in run.steps)


def _characters(message: Message) -> int:
    called = sum(len(call.name) + len(values.write(call.arguments)) for call in message.calls)
    return len(message.text) + len(message.thought) + called


def reward(run: Trajectory) -> float | None:
    """Of the run; `success` counts as 1 or 0 where there is none."""
    if run.outcome.reward is not None or run.outcome.success is None:
        return run.outcome.reward
    return float(run.outcome.success)


def succeeded(run: Trajectory) -> bool:
    """Whether it is known to have."""
    if run.outcome.success is not None:
        return run.outcome.success
    return run.outcome.reward is not None and run.outcome.reward >= 1


# ---- the rules -----------------------------------------------------------------------------------------------------


def _reward(case: Case) -> str | None:
    least, found = case.config.min_reward, reward(case.run)
    if least is None or (found is not None and found >= least):
        return None
    return "no reward is given" if found is None else f"reward {found:g} is less than {least:g}"


def _turns(case: Case) -> str | None:
    config, turns = case.config, len(case.turns)
    if turns < config.min_turns:
        return f"{turns:,} turns, less than {config.min_turns:,}"
    if config.max_turns is not None and turns > config.max_turns:
        return f"{turns:,} turns, more than {config.max_turns:,}"
    return None


def _length(case: Case) -> str | None:
    config = case.config
    if config.max_characters is not None and (found := characters(case.run)) > config.max_characters:
        return f"{found:,} characters, more than {config.max_characters:,}"
    if config.max_tokens is not None and case.count_tokens is not None:
        try:
            found = case.count_tokens(case.run)
        except InputError as error:
            return f"cannot be rendered: {error}"
        if found > config.max_tokens:
            return f"{found:,} tokens, more than {config.max_tokens:,}"
    return None


def _empty_final(case: Case) -> str | None:
    if any(action.result is None for action in case.actions):
        return "it ends in a call without a result"
    last = case.turns[-1].message
    if not last.calls and not last.text.strip():
        return "the last message of the assistant says and calls nothing"
    return None


def _malformed_calls(case: Case) -> str | None:
    if not case.run.tools:  # none is declared: nothing to hold a call against
        return None
    tools = {tool.name: tool for tool in case.run.tools}
    for action in case.actions:
        if not action.failed and (reason := misfit(action.call, tools)):
            return f"messages[{action.step}]: {reason}"
    return None


def _loops(case: Case) -> str | None:
    times = case.config.loops
    actions = [action for action in case.actions if action.result is not None]
    start = find_loop([_done(case, action) for action in actions], times) if times is not None else None
    if start is None:
        return None
    begin, period = start
    what = f"{actions[begin].call.name[:80]!r}"
    what = f"a round of {period} calls from {what} on" if period > 1 else what
    return f"messages[{actions[begin].step}]: {what} is repeated: {times} times or more with the same result"


def find_loop(done: Sequence[Hashable], times: int) -> tuple[int, int] | None:
    """Where something is done `times` times in a row, and in rounds of how many (at most `MAX_PERIOD`)."""
    for period in range(1, MAX_PERIOD + 1):
        same = 0
        for i in range(period, len(done)):
            same = same + 1 if done[i] == done[i - period] else 0
            if same == period * (times - 1):
                return i + 1 - period * times, period
    return None


def _done(case: Case, action: Action) -> tuple[str, str, bool]:
    """What was called, and what it gave."""
    assert action.result is not None
    step = case.run.steps[action.result]
    return call_key(action.call), step.message.text, step.error


def _unrecovered_failures(case: Case) -> str | None:
    most = case.config.unrecovered_failures
    failures = sum(action.failed and action.recovered_by is None for action in case.actions)
    if most is None or failures <= most or succeeded(case.run):
        return None
    return f"{failures:,} failed calls that nothing made good, more than {most:,}"


RULES: dict[str, Callable[[Case], str | None]] = {
    "reward": _reward,
    "turns": _turns,
    "length": _length,
    "empty_final": _empty_final,
    "malformed_calls": _malformed_calls,
    "loops": _loops,
    "unrecovered_failures": _unrecovered_failures,
}

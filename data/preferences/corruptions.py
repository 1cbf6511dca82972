"""Mistakes made in runs that succeeded: the run is preferred to itself with the mistake.

Each mistake contradicts what the run itself shows. Both sides end with the message that holds the mistake, because what
followed would answer another message; a run that stops early is preferred less than the whole run.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data.policy.speakers import parsed_json, texts_of
from data.preferences.outcomes import succeeded
from data.preferences.pair import PreferencePair, said
from data.preferences.replays import Replays
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role

ORIGIN = "corruptions"
NUMBER = re.compile(r"(?<![\w.,])\d+(?:\.\d+)?(?![\w,]|\.\d)")
"""A number that is no part of a word, of a list or of another number."""
_TRIES = 20
Found = tuple[Trajectory, Trajectory]
"""The run as far as it is compared, and the same with a mistake."""


def corrupted(run: Trajectory, most: int, replays: Replays | None = None) -> Iterator[PreferencePair]:
    """At most `most` pairs of a run: one mistake of every kind first, then another one. None of a run that failed.
    Equal runs give equal pairs. `replays`: only mistakes with which the run fails when it is replayed."""
    if succeeded(run.outcome) is False or (replays is not None and not replays.succeeds(run)):
        return
    draw = random.Random(f"corruptions {said(run)}")
    waiting = {name: kind(run, draw) for name, kind in KINDS.items()}
    task, seen = run.provenance.task or "", set()
    while waiting and len(seen) < most:
        for name, kind in list(waiting.items()):
            if (found := next(kind, None)) is None:
                del waiting[name]
            elif len(seen) < most and (pair := PreferencePair(*found, task, f"{ORIGIN}: {name}")).id not in seen:
                if replays is None or replays.certifies(run, pair):
                    seen.add(pair.id)
                    yield pair


def _wrong_number(run: Trajectory, draw: random.Random) -> Iterator[Found]:
    """A text of the assistant repeats a number; another one of as many digits takes its place."""
    for i, step in _own(run):
        before = _numbers_before(run, i)
        text = "" if step.message.calls or len(step.message.parts) != 1 else step.message.text
        for match in NUMBER.finditer(text):
            if match[0] in before and (other := _other_number(match[0], before, draw)) is not None:
                changed = text[: match.start()] + other + text[match.end() :]
                yield _replaced(run, i, dataclasses.replace(step.message, parts=(changed,)))


def _wrong_argument(run: Trajectory, draw: random.Random) -> Iterator[Found]:
    """Replaces an argument of a call that the run mentions earlier by another value."""
    for i, step in _own(run):
        before = _numbers_before(run, i)
        text = _text_before(run, i)
        for at, call in enumerate(step.message.calls):
            for name, value in call.arguments.items():
                other = _other_value(value, before, text, draw)
                if other is None:
                    continue
                calls = list(step.message.calls)
                calls[at] = dataclasses.replace(call, arguments={**call.arguments, name: other})
                yield _replaced(run, i, dataclasses.replace(step.message, calls=tuple(calls)))


def _wrong_tool(run: Trajectory, draw: random.Random) -> Iterator[Found]:
    """A call goes to another tool with the same arguments as far as that tool declares them."""
    for i, step in _own(run):
        for at, call in enumerate(step.message.calls):
            others = [tool for tool in run.tools if tool.name != call.name]
            if not others:
                continue
            tool = draw.choice(others)
            declared: Mapping[str, Any] = tool.parameters.get("properties") or {}
            arguments = {key: value for key, value in call.arguments.items() if key in declared}
            calls = list(step.message.calls)
            calls[at] = dataclasses.replace(call, name=tool.name, arguments=arguments)
            yield _replaced(run, i, dataclasses.replace(step.message, calls=tuple(calls)))


def _stops_early(run: Trajectory, draw: random.Random) -> Iterator[Found]:
    """The run's last answer comes before a call that changed something: before its last call."""
    last = run.steps[-1]
    calling = [i for i, step in _own(run) if step.message.calls]
    if last.message.role is Role.ASSISTANT and not last.message.calls and calling:
        yield run, _with(run, [*run.steps[: calling[-1]], last])


KINDS: dict[str, Callable[[Trajectory, random.Random], Iterator[Found]]] = {
    "wrong number": _wrong_number,
    "wrong argument": _wrong_argument,
    "wrong tool": _wrong_tool,
    "stops early": _stops_early,
}


def _own(run: Trajectory) -> Iterator[tuple[int, Step]]:
    return ((i, step) for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT and step.weight != 0)


def _text_before(run: Trajectory, i: int) -> str:
    return "\n".join(step.message.text for step in run.steps[:i])


def _numbers_before(run: Trajectory, i: int) -> set[str]:
    in_results = (parsed_json(step.message.text) for step in run.steps[:i] if step.message.role is Role.TOOL)
    found = {text for result in in_results for text in texts_of(result) if NUMBER.fullmatch(text)}
    return found | {match[0] for match in NUMBER.finditer(_text_before(run, i))}


def _other_number(number: str, seen: set[str], draw: random.Random) -> str | None:
    """A number with as many digits that was not seen; None if none is drawn."""
    for _ in range(_TRIES):
        digits = [draw.choice("0123456789") if c.isdigit() else c for c in number]
        if number[0] != "0" and digits[0] == "0":
            digits[0] = draw.choice("123456789")
        if (other := "".join(digits)) not in seen and other != number:
            return other
    return None


def _other_value(value: Any, seen: set[str], text: str, draw: random.Random) -> Any | None:
    """A value to put in the place of `value`, with new random digits; None unless `value` occurs earlier in the run."""
    if type(value) is int:
        other = _other_number(str(value), seen, draw) if value >= 0 and str(value) in seen else None
        return None if other is None else int(other)
    if not isinstance(value, str) or not any(c.isdigit() for c in value) or value not in text:
        return None
    for _ in range(_TRIES):
        other = "".join(draw.choice("0123456789") if c.isdigit() else c for c in value)
        if other not in text:
            return other
    return None


def _replaced(run: Trajectory, i: int, message: Message) -> Found:
    kept = dataclasses.replace(run.steps[i], message=message)
    return _with(run, run.steps[: i + 1]), _with(run, [*run.steps[:i], kept])


def _with(run: Trajectory, steps) -> Trajectory:
    return dataclasses.replace(run, steps=steps)

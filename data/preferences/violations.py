"""Pairs about the rules of a policy: a run that keeps them is preferred to one that breaks them.

A run with a violation ends with the message that holds it. Violations are also put into runs that keep the rules: a
call that comes too early, or an argument that only a result has named. Only what the detector confirms is kept. Twins
keep a model from refusing: once the user has agreed, the call is preferred to asking again.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from data.policy import ToolPolicy, Violation, find_violations
from data.policy.speakers import parsed_json, texts_of
from data.preferences.outcomes import succeeded
from data.preferences.pair import PreferencePair
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Role, ToolCall

FOUND, INJECTED, TWINS = "violations", "injected violations", "twins"
"""What made a pair; the rule follows."""


def of_violations(runs: Iterable[Trajectory], policy: ToolPolicy, per_task: int) -> Iterator[PreferencePair]:
    """Pairs of runs of one task, then pairs made of single runs, in the order of the file. Each task gives at most
    `per_task` of the former and each run as many of the latter. Runs that failed are never preferred."""
    tasks: dict[str, tuple[list[Trajectory], list[tuple[Trajectory, Violation]]]] = {}
    singles: list[Trajectory] = []
    for run in runs:
        found = find_violations(run, policy)
        clean, broken = tasks.setdefault(run.provenance.task or "", ([], []))
        if found:
            broken.append((_until(run, found[0].step), found[0]))
        elif succeeded(run.outcome) is not False:
            clean.append(run)
            singles.append(run)
    for task, (clean, broken) in tasks.items():
        if task:
            yield from _of_task(task, clean, broken, per_task)
    for run in singles:
        yield from injected(run, policy, per_task)


def _of_task(
    task: str, clean: list[Trajectory], broken: list[tuple[Trajectory, Violation]], most: int
) -> Iterator[PreferencePair]:
    both = [(clean[(i + shift) % len(clean)], *broken[i]) for shift in range(len(clean)) for i in range(len(broken))]
    seen: set[str] = set()
    for chosen, rejected, violation in both:
        pair = PreferencePair(chosen, rejected, task, f"{FOUND}: {violation.rule}")
        if len(seen) < most and pair.id not in seen:
            seen.add(pair.id)
            yield pair


def injected(run: Trajectory, policy: ToolPolicy, most: int) -> Iterator[PreferencePair]:
    """At most `most` pairs of a run without violations: one of each rule first, and twins."""
    task, made, seen = run.provenance.task or "", [], set[str]()
    for i, rejected in (*_too_early(run), *_named_by_results(run, policy)):
        found = find_violations(rejected, policy)
        if found and all(violation.step == i for violation in found):
            made.append(PreferencePair(_until(run, i), rejected, task, f"{INJECTED}: {found[0].rule}"))
    made += [PreferencePair(_until(run, i), again, task, TWINS) for i, again in _asks_again(run, policy)]
    firsts = {pair.origin: pair for pair in reversed(made)}
    for pair in [*firsts.values(), *made]:
        if len(seen) < most and pair.id not in seen:
            seen.add(pair.id)
            yield pair


def _too_early(run: Trajectory) -> Iterator[tuple[int, Trajectory]]:
    """A later call in the place of each message of the assistant."""
    own = [i for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT]
    for n, i in enumerate(own):
        for later in own[n + 1 :]:
            for call in run.steps[later].message.calls:
                yield i, _with_call(run, i, 0, call, alone=True)


def _named_by_results(run: Trajectory, policy: ToolPolicy) -> Iterator[tuple[int, Trajectory]]:
    """An argument that a rule protects has a value of an earlier result in its place."""
    for i, step in enumerate(run.steps):
        for at, call in enumerate(step.message.calls):
            rule = policy.tools.get(call.name)
            for name in [n for n in call.arguments if rule is not None and n in (*rule.scope, *rule.trusted)]:
                for other in _others(run, i, call.arguments[name]):
                    arguments = {**call.arguments, name: other}
                    yield i, _with_call(run, i, at, dataclasses.replace(call, arguments=arguments))


def _others(run: Trajectory, before: int, value: Any) -> list[Any]:
    """Scalars of earlier results with the type of `value`."""
    if type(value) not in (str, int):
        return []
    results = [step.message.text for step in run.steps[:before] if step.message.role is Role.TOOL]
    found = dict.fromkeys(text for result in results for text in texts_of(parsed_json(result)))
    if type(value) is int:
        return [int(text) for text in found if text.isdigit() and len(text) < 10 and int(text) != value]
    alike = lambda text: any(c.isdigit() for c in text) == any(c.isdigit() for c in value)
    return [text for text in found if text != value and alike(text)]


def _asks_again(run: Trajectory, policy: ToolPolicy) -> Iterator[tuple[int, Trajectory]]:
    """The assistant repeats its question in the place of a call that the user has agreed to."""
    for i, step in enumerate(run.steps):
        rules = [policy.tools.get(call.name) for call in step.message.calls]
        confirmed = any(r is not None and (r.confirm is not False or r.privilege > policy.granted) for r in rules)
        before = [s for s in run.steps[:i] if s.message.role is Role.ASSISTANT and not s.message.calls]
        if confirmed and before:
            yield i, dataclasses.replace(run, steps=[*run.steps[:i], before[-1]])


def _with_call(run: Trajectory, i: int, at: int, call: ToolCall, alone: bool = False) -> Trajectory:
    """The run until message i, in which `call` takes the place of call `at`, or of everything if `alone`."""
    old = run.steps[i].message
    calls = (call,) if alone else (*old.calls[:at], call, *old.calls[at + 1 :])
    message = dataclasses.replace(old, parts=() if alone else old.parts, calls=calls)
    return dataclasses.replace(run, steps=[*run.steps[:i], Step(message)])


def _until(run: Trajectory, i: int) -> Trajectory:
    return dataclasses.replace(run, steps=run.steps[: i + 1])

"""Pairs of runs of one task, of which one succeeded and the other did not."""

from collections.abc import Iterable, Iterator

from data.preferences.pair import PreferencePair, said
from data.trajectories.trajectory import Outcome, Trajectory
from maverick_jax.errors import InputError

THRESHOLD = 1.0
"""The least reward of a success."""


def succeeded(outcome: Outcome) -> bool | None:
    """None if the run does not say."""
    if outcome.success is not None:
        return outcome.success
    return None if outcome.reward is None else outcome.reward >= THRESHOLD


def of_outcomes(runs: Iterable[Trajectory], per_task: int) -> Iterator[PreferencePair]:
    """Every run that succeeded with every run of its task that failed, at most `per_task` of a task: each success first
    with another failure. Tasks come in the order of the file. Raises InputError for a run that names no task, because
    runs of different tasks cannot be compared."""
    tasks: dict[str, tuple[list[Trajectory], list[Trajectory]]] = {}
    for number, run in enumerate(runs):
        if run.provenance.task is None:
            raise InputError(f"run {number}: names no task; expected `task_id`, or `task` in its provenance")
        good, bad = tasks.setdefault(run.provenance.task, ([], []))
        if (success := succeeded(run.outcome)) is not None:
            (good if success else bad).append(run)
    for task, (good, bad) in tasks.items():
        both = [(good[i], bad[(i + shift) % len(bad)]) for shift in range(len(bad)) for i in range(len(good))]
        for chosen, rejected in [(a, b) for a, b in both if said(a) != said(b)][:per_task]:
            yield PreferencePair(chosen, rejected, task, "outcomes")

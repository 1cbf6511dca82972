"""Answers that belong to another prompt. KTO estimates from them how far the model is from its reference (arXiv
2402.01306)."""

from collections.abc import Iterable, Iterator

from data.preferences.pair import PreferencePair
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Role

NEEDS = "preferences.mismatched: needs"
INSTEAD = "expected pair_loss.kind: apo_zero, which needs none"


def with_mismatched(pairs: Iterable[PreferencePair]) -> Iterator[tuple[PreferencePair, list[Trajectory]]]:
    """Each pair, and for each of its sides the same prompt with the answer of the last pair before it that has another
    prompt, or for the first ones of the first pair after them. Raises InputError for sides that are no single answers,
    and if all pairs have one prompt."""
    waiting: list[PreferencePair] = []
    last = other = None
    for pair in pairs:
        _require_answers(pair)
        if last is not None and pair.group != last.group:
            other = last
        last = pair
        if other is None:
            waiting.append(pair)
            continue
        for one in waiting:
            yield one, _crossed(one, pair)
        waiting = []
        yield pair, _crossed(pair, other)
    if waiting:
        raise InputError(f"{NEEDS} answers to two prompts or more; {INSTEAD}")


def _crossed(pair: PreferencePair, other: PreferencePair) -> list[Trajectory]:
    answers = [one for one in other.sides if one is not None]
    found = []
    for i, side in enumerate(pair.sides):
        if side is not None:
            answer = (other.sides[i] or answers[0]).steps[-1]
            steps = (*side.steps[:-1], Step(answer.message, weight=answer.weight))
            found.append(Trajectory(steps, side.tools, provenance=side.provenance))
    return found


def _require_answers(pair: PreferencePair) -> None:
    sides = [side for side in pair.sides if side is not None]
    ends = [side.steps[-1].message for side in sides]
    if any(end.role is not Role.ASSISTANT or end.calls for end in ends):
        raise InputError(f"{NEEDS} sides that end with an answer; {INSTEAD}")
    before = [[step.message for step in side.steps[:-1]] for side in sides]
    if before[0] != before[-1]:
        raise InputError(f"{NEEDS} sides that differ in their last message alone; {INSTEAD}")

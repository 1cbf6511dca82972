"""Score of a trajectory: an estimate in [0, 1] of how much a model can learn from it. It depends only on the
trajectory.

    score = 0.40 outcome + 0.20 recovery + 0.15 grounding + 0.10 variety + 0.10 depth + 0.05 novelty

The weights are our choice, not a measured result; docs/reference/trajectories.md describes the parts.
"""

import dataclasses
import re

from data.trajectories.actions import Action, find_actions
from data.trajectories.filters.rules import call_key, reward
from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Message, Role

WEIGHTS = {"outcome": 0.40, "recovery": 0.20, "grounding": 0.15, "variety": 0.10, "depth": 0.10, "novelty": 0.05}
TOOLS_ENOUGH = 4
"""Number of different tools that gives the full variety."""
HALF_DEPTH = 4
"""Number of calls at which depth is one half."""
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class ScoreParts:
    """The parts of a score, each in [0, 1]."""

    outcome: float
    """The reward, clipped to [0, 1]; without a reward, success as 1 or 0; 0.5 if neither is known."""
    recovery: float
    """Fraction of failed calls that were recovered; 0.5 if none failed."""
    grounding: float
    """Fraction of texts and numbers in the arguments of calls whose words all occurred earlier in the trajectory; 0.5
    if there are none."""
    variety: float
    """Number of different tools called, divided by 4; at most 1."""
    depth: float
    """n / (n + 4) for n calls."""
    novelty: float
    """Fraction of calls that are different from each other; 1 without calls."""


def score(trajectory: Trajectory) -> float:
    """The score in [0, 1], rounded to 6 decimals so that it is the same on every machine."""
    found = parts(trajectory)
    return round(sum(weight * getattr(found, name) for name, weight in WEIGHTS.items()), 6)


def parts(trajectory: Trajectory) -> ScoreParts:
    """The parts of the trajectory's score."""
    actions = find_actions(trajectory)
    failed = [action for action in actions if action.failed]
    known = reward(trajectory)
    return ScoreParts(
        outcome=0.5 if known is None else min(max(known, 0.0), 1.0),
        recovery=_share(sum(action.recovered_by is not None for action in failed), len(failed), 0.5),
        grounding=_grounding(trajectory),
        variety=min(len({action.call.name for action in actions}), TOOLS_ENOUGH) / TOOLS_ENOUGH,
        depth=len(actions) / (len(actions) + HALF_DEPTH),
        novelty=_share(_different(actions), len(actions), 1.0),
    )


def _share(part: int, whole: int, otherwise: float) -> float:
    return part / whole if whole else otherwise


def _different(actions: list[Action]) -> int:
    return len({call_key(action.call) for action in actions})


def _grounding(trajectory: Trajectory) -> float:
    """Words are looked up in a set, so the time is linear in the length of the trajectory."""
    seen: set[str] = set()
    grounded = total = 0
    for step in trajectory.steps:
        message = step.message
        if message.role is Role.ASSISTANT:
            for leaf in _leaves(message):
                words = _WORD.findall(leaf)
                total += bool(words)
                grounded += bool(words) and seen.issuperset(words)
        else:
            seen.update(_WORD.findall(message.text))
    return _share(grounded, total, 0.5)


def _leaves(message: Message) -> list[str]:
    """Texts and numbers in the arguments of all calls, at any depth; booleans are left out."""
    waiting: list[object] = [call.arguments for call in message.calls]
    found = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif value is not None and not isinstance(value, bool):
            found.append(str(value))
    return found

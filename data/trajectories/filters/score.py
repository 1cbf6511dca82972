"""How much there is to learn from a run: a number in [0, 1] that depends on the run alone.

    score = 0.40 outcome + 0.20 recovery + 0.15 grounding + 0.10 variety + 0.10 depth + 0.05 novelty

The weights are a choice of ours, not a finding; docs/reference/trajectories.md says what each part is.
"""

import dataclasses
import re

from data.trajectories.actions import Action, find_actions
from data.trajectories.filters.rules import call_key, reward
from data.trajectories.trajectory import Trajectory
from maverick_jax.text.chat import Message, Role

WEIGHTS = {"outcome": 0.40, "recovery": 0.20, "grounding": 0.15, "variety": 0.10, "depth": 0.10, "novelty": 0.05}
TOOLS_ENOUGH = 4
"""Different tools beyond which more count no more."""
HALF_DEPTH = 4
"""Calls at which depth is one half."""
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Parts:
    """Each in [0, 1]."""

    outcome: float
    """The reward, cut to [0, 1]; success as 1 or 0 where there is none; 0.5 where neither is known."""
    recovery: float
    """Failed calls that were made good, of all failed ones; 0.5 where none failed."""
    grounding: float
    """Texts and numbers among the arguments of calls all of whose words stood in the run before (0.5: no such)."""
    variety: float
    """Different tools called, of four."""
    depth: float
    """n / (n + 4) of n calls."""
    novelty: float
    """Different calls, of all calls; 1 where there is none."""


def score(run: Trajectory) -> float:
    """In [0, 1], rounded to 6 places so that it is the same on every machine."""
    found = parts(run)
    return round(sum(weight * getattr(found, name) for name, weight in WEIGHTS.items()), 6)


def parts(run: Trajectory) -> Parts:
    """What the score of `run` is made of."""
    actions = find_actions(run)
    failed = [action for action in actions if action.failed]
    known = reward(run)
    return Parts(
        outcome=0.5 if known is None else min(max(known, 0.0), 1.0),
        recovery=_share(sum(action.recovered_by is not None for action in failed), len(failed), 0.5),
        grounding=_grounding(run),
        variety=min(len({action.call.name for action in actions}), TOOLS_ENOUGH) / TOOLS_ENOUGH,
        depth=len(actions) / (len(actions) + HALF_DEPTH),
        novelty=_share(_different(actions), len(actions), 1.0),
    )


def _share(part: int, whole: int, otherwise: float) -> float:
    return part / whole if whole else otherwise


def _different(actions: list[Action]) -> int:
    return len({call_key(action.call) for action in actions})


def _grounding(run: Trajectory) -> float:
    """Words are looked up in a set, so that the time is that of reading the run once."""
    seen: set[str] = set()
    grounded = total = 0
    for step in run.steps:
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
    """Texts and numbers among the arguments, wherever they are nested; true and false are not."""
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

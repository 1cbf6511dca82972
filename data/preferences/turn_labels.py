"""What is wrong with single turns of the assistant: labels that a reward model learns.

A message may have one in its data: `turn_label`. The turns of made pairs have those that follow from how they were
made: before the mistake all is good, and the last turn of the rejected side has the mistake.
"""

import enum

from data.preferences import corruptions, violations
from data.preferences.pair import PreferencePair
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.chat import Role

FIELD = "turn_label"


class TurnLabel(enum.IntEnum):
    """The label of an assistant turn. The numbers are stored in data."""

    GOOD = 0
    INCONSISTENT = 1
    """It contradicts what the run has shown."""
    PREMATURE = 2
    """It ends the task before it is done."""
    UNAUTHORIZED = 3
    """It breaks a rule of the policy."""


LABELS = tuple(label.name.lower() for label in TurnLabel)
NO_LABEL = 255
_MISTAKES = {
    f"{corruptions.ORIGIN}: wrong number": TurnLabel.INCONSISTENT,
    f"{corruptions.ORIGIN}: wrong argument": TurnLabel.INCONSISTENT,
    f"{corruptions.ORIGIN}: stops early": TurnLabel.PREMATURE,
    violations.FOUND: TurnLabel.UNAUTHORIZED,
    violations.INJECTED: TurnLabel.UNAUTHORIZED,
}
"""Origin of a pair, or its beginning -> label of the rejected side's last turn."""


Labels = dict[int, TurnLabel]
"""Index of a message -> its label."""


def labels_of(pair: PreferencePair) -> tuple[Labels, Labels]:
    """The labels of the turns of the chosen and of the rejected side, as far as they have one. Raises
    InputError for a `turn_label` that is none."""
    origin = pair.origin
    mistake = next((label for made, label in _MISTAKES.items() if origin.startswith(made)), None)
    chosen, rejected = ({} if side is None else _given(side) for side in pair.sides)
    if mistake is None:
        return chosen, rejected
    assert pair.chosen is not None and pair.rejected is not None
    *before, last = _own(pair.rejected)
    made = dict.fromkeys(before, TurnLabel.GOOD) | {last: mistake}
    return dict.fromkeys(_own(pair.chosen), TurnLabel.GOOD) | chosen, made | rejected


def _own(run: Trajectory) -> list[int]:
    return [i for i, step in enumerate(run.steps) if step.message.role is Role.ASSISTANT]


def _given(run: Trajectory) -> Labels:
    """The labels that messages have in their data."""
    found = {}
    for i in _own(run):
        if (name := run.steps[i].extra.get(FIELD)) is not None:
            if name not in LABELS:
                near = did_you_mean(str(name)[:80], LABELS)
                raise InputError(f"messages[{i}].{FIELD}: {name!r:.80}{near}; expected {', '.join(LABELS)}")
            found[i] = TurnLabel(LABELS.index(name))
    return found

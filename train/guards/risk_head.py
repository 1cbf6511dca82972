"""The guard that reads the risk of a turn from a reward model's heads."""

import math
from collections.abc import Sequence

from data.guard import Guard, Risk
from data.preferences.turn_labels import LABELS
from data.trajectories.trajectory import Trajectory
from train.evaluation.scorer import Scorer

UNAUTHORIZED = LABELS.index("unauthorized")


class RiskHead(Guard):
    """The probability that the last turn is not authorized, by the turn head. Every call of the turn has it."""

    name = "risk head"

    def __init__(self, checkpoint: str, dialect: str | None = None):
        """Raises InputError for a checkpoint without reward heads."""
        self._scorer = Scorer(checkpoint, dialect)

    def risks(self, run: Trajectory) -> Sequence[Risk]:
        _, logits = self._scorer(run.conversation).turns[-1]
        found = 1 / (1 + math.exp(-logits[UNAUTHORIZED]))
        return [Risk(found, "", f"{found:.2f} likely unauthorized")] * len(run.steps[-1].message.calls)

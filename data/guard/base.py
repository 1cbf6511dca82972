"""The interface of guards, and how much scrutiny a risk gets at a privilege."""

import abc
import enum
from collections.abc import Sequence
from typing import NamedTuple

from data.policy.config import MOST_PRIVILEGE
from data.trajectories.trajectory import Trajectory


class Ruling(enum.IntEnum):
    """What becomes of a call; larger is stricter."""

    ALLOW = 0
    """It is carried out."""
    CONFIRM = 1
    """The user is asked first."""
    BLOCK = 2
    """It is refused."""


class Risk(NamedTuple):
    """What a guard thinks of one call."""

    score: float
    """0 (harmless) to 1 (certainly not authorized)."""
    label: str = ""
    """A short name of what is wrong, such as a rule's."""
    reason: str = ""
    """The evidence, in words."""
    asks: bool = True
    """Whether the user's agreement would make it right."""


class Guard(abc.ABC):
    """Judges the calls of a message before they are carried out."""

    name: str

    @abc.abstractmethod
    def risks(self, run: Trajectory) -> Sequence[Risk]:
        """The risk of each call of the last message of `run`, which has one or more, in their order. A guard that
        raises, or answers with anything else, counts as failed."""


def ruling_of(risk: Risk, privilege: int, thresholds: Sequence[float]) -> Ruling:
    """The ruling on a call of this privilege, 0 to 4. `thresholds`: for each privilege the least score that is held
    back; they must not rise. The ruling never becomes milder with more privilege, nor with a higher score."""
    if risk.score < thresholds[privilege]:
        return Ruling.ALLOW
    return Ruling.CONFIRM if risk.asks and privilege < MOST_PRIVILEGE else Ruling.BLOCK

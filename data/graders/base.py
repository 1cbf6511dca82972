"""What a grader says of an answer."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

MAX_SHOWN = 200
"""Maximum number of characters of an answer in a reason."""
NONE: Mapping[str, float] = MappingProxyType({})


class Grade(NamedTuple):
    """The grade of one answer."""

    score: float
    """Between 0 and 1."""
    reason: str
    """An explanation of a score below 1; empty for 1."""
    answered: bool = True
    """Whether an answer was found in the reply at all, right or wrong."""
    parts: Mapping[str, float] = NONE
    """Further scores of the same answer by name, such as by a stricter rule."""


def binary(right: bool, reason: str, answered: bool = True, parts: Mapping[str, float] = NONE) -> Grade:
    """Score 1 without a reason, or score 0 with one."""
    return Grade(1.0, "", answered, parts) if right else Grade(0.0, reason, answered, parts)


def shown(text: str) -> str:
    """The beginning of an answer, quoted, for a reason."""
    return repr(text.strip()[:MAX_SHOWN])

"""Compares answers with references."""

import re
from collections.abc import Sequence
from decimal import Decimal

from data.tasks.base import Grade

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")
MAX_SHOWN = 200
"""Maximum number of characters of an answer in a reason."""


def exact(answer: str, references: Sequence[str]) -> Grade:
    """Score 1 if the answer equals a reference. White space is compared as in `str.split`."""
    if any(_words(answer) == _words(reference) for reference in references):
        return Grade(1.0, "")
    return Grade(0.0, _differs(answer, references))


def numeric(answer: str, references: Sequence[str]) -> Grade:
    """Score 1 if the answer's last number equals the last number of a reference; 1,000 and 1000.0 are equal."""
    if (found := number_in(answer)) is None:
        return Grade(0.0, f"no number in {answer.strip()[:MAX_SHOWN]!r}")
    if any(found == number_in(reference) for reference in references):
        return Grade(1.0, "")
    return Grade(0.0, _differs(answer, references))


def number_in(text: str) -> Decimal | None:
    """The last number in a text, or None."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def _words(text: str) -> list[str]:
    return text.split()


def _differs(answer: str, references: Sequence[str]) -> str:
    expected = " or ".join(f"{reference[:MAX_SHOWN]!r}" for reference in references[:3])
    return f"expected {expected}, got {answer.strip()[:MAX_SHOWN]!r}"

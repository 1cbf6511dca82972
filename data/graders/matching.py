"""Compares answers with references: equal texts and equal numbers."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal

from data.graders.base import MAX_SHOWN, Grade, binary, shown

_NUMBER = re.compile(r"(?:(?<![\w.])[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MINUS = str.maketrans({"\u2212": "-", "\u2012": "-", "\u2013": "-"})
MAX_DIGITS = 300
"""Longest number that is read, in characters."""


def exact(answer: str, references: Sequence[str]) -> Grade:
    """Score 1 if the answer equals a reference. White space is compared as in `str.split`."""
    right = any(answer.split() == reference.split() for reference in references)
    return binary(right, differs(answer, references), bool(answer.strip()))


def numeric(answer: str, references: Sequence[str]) -> Grade:
    """Score 1 if the answer's last number equals the last number of a reference; 1,000 and 1000.0 are equal."""
    if (found := number_in(answer)) is None:
        return Grade(0.0, f"no number in {shown(answer)}", answered=False)
    return binary(any(found == number_in(reference) for reference in references), differs(answer, references))


def number_in(text: str) -> Decimal | None:
    """The last number in a text, or None. Digits of any script count, also full-width ones; commas group digits."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).translate(_MINUS))
    return number_of(found[-1]) if found else None


def number_of(text: str) -> Decimal | None:
    """The number that a text is, without the commas that group its digits; None if it is none."""
    plain = text.replace(",", "").rstrip(".")
    if len(plain) > MAX_DIGITS or not re.fullmatch(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)", plain):
        return None
    return Decimal(plain)


def differs(answer: str, references: Sequence[str]) -> str:
    """The reason for an answer that equals none of the references."""
    expected = " or ".join(f"{reference[:MAX_SHOWN]!r}" for reference in references[:3])
    return f"expected {expected}, got {shown(answer)}"

"""Multiple choice: the letter in a reply, and the likeliest of several continuations."""

import re
import unicodedata
from collections.abc import Sequence

from data.graders.base import Grade, binary, shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARKS = r"[\s*_`(\[\"'$]*(?:\\(?:boxed|text|textbf|mathrm)\{)?[\s*_`(\[\"'$]*"
_STATED = re.compile(rf"(?:answer|choice|option)(?:\s+is)?\s*[:=]?{_MARKS}([A-Z])(?![A-Za-z])", re.IGNORECASE)
_ALONE = re.compile(r"[\s*_`(\[\"']*([A-Z])[\s*_`)\]\"'.:]*")
_LEADING = re.compile(r"[\s*_`(\[\"']*([A-Z])[)\].:*]")


def letter_in(text: str, count: int) -> str | None:
    """The letter of the choice that a reply states, out of the first `count`; None: it states none.

    In this order: the last "answer: X" or the like; a reply or a last line that is one letter; a reply that begins
    with a letter and a mark, such as "B) ...". A letter inside a sentence does not count."""
    text = unicodedata.normalize("NFKC", text).strip()
    known = LETTERS[:count]
    stated = [letter for letter in _STATED.findall(text) if letter.upper() in known and letter.isupper()]
    if stated:
        return stated[-1]
    lines = [line for line in text.splitlines() if line.strip()]
    for found in [_ALONE.fullmatch(line) for line in (text, *lines[-1:])] + [_LEADING.match(text)]:
        if found and found[1] in known:
            return found[1]
    return None


def grade_letter(text: str, right: int, count: int) -> Grade:
    """Score 1 if the reply states choice number `right` of `count`."""
    letter = letter_in(text, count)
    if letter is None:
        return Grade(0.0, f"no letter of a choice in {shown(text)}", answered=False)
    return binary(letter == LETTERS[right], f"expected {LETTERS[right]}, got {letter}")


def grade_likelihoods(choices: Sequence[str], log_probs: Sequence[float], right: int) -> Grade:
    """Score 1 if choice number `right` has the highest log-probability; of equal ones, the first counts. The part
    `per_byte` is the same after each log-probability was divided by the choice's length in UTF-8 bytes."""
    best = max(range(len(choices)), key=lambda i: log_probs[i])
    per_byte = max(range(len(choices)), key=lambda i: log_probs[i] / max(1, len(choices[i].encode())))
    reason = f"expected {shown(choices[right])}, but {shown(choices[best])} is likelier"
    return binary(best == right, reason, parts={"per_byte": float(per_byte == right)})

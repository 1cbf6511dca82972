"""Questions about charts and documents: relaxed accuracy and ANLS."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from data.graders.base import Grade, binary, shown
from data.graders.matching import differs

TOLERANCE = Decimal("0.05")
ANLS_THRESHOLD = 0.5
MAX_COMPARED = 2_000
"""Longest answer whose edit distance is computed, in characters."""
_STATED = re.compile(r"^.*\b(?:final\s+)?answer\s*[:=]\s*(.*)$", re.IGNORECASE | re.MULTILINE)


def stated_answer(text: str) -> str | None:
    """What follows the last `answer:` of a reply, up to the end of the line; of a reply of one line without it, the
    line. None for any other reply."""
    found = _STATED.findall(text)
    if found:
        return _bare(found[-1]) or None
    lines = [line for line in text.splitlines() if line.strip()]
    return _bare(lines[0]) or None if len(lines) == 1 else None


def _bare(text: str) -> str:
    return text.strip().strip("*`\"'").rstrip(".").strip()


def relaxed(answer: str, references: Sequence[str]) -> bool:
    """Whether an answer is within 5% of a reference that is a number, a percentage read as it stands or as a fraction;
    or equals a reference, whatever the case (the rule of ChartQA)."""
    given = _readings(answer)
    for reference in references:
        wanted = _readings(reference)
        if given and wanted:
            if any(_close(a, b) for a in given for b in wanted):
                return True
        elif _plain(answer) == _plain(reference):
            return True
    return False


def _close(given: Decimal, wanted: Decimal) -> bool:
    return given == 0 if wanted == 0 else abs(given - wanted) <= TOLERANCE * abs(wanted)


def _readings(text: str) -> list[Decimal]:
    plain = unicodedata.normalize("NFKC", text).strip().replace(",", "").lstrip("$\u20ac\u00a3").strip()
    percent = plain.endswith("%")
    plain = plain.removesuffix("%").strip()
    if len(plain) > 100 or not re.fullmatch(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)", plain):
        return []
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return []
    return [number, number / 100] if percent else [number]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def grade_relaxed(text: str, references: Sequence[str]) -> Grade:
    """Score 1 if the stated answer is right by `relaxed`. Parts: `exact`, it equals a reference, whatever the case;
    `anywhere`, a reference occurs in the reply, which is right too often."""
    answer = stated_answer(text)
    anywhere = any(_plain(reference) in _plain(text) for reference in references)
    if answer is None:
        parts = {"exact": 0.0, "anywhere": float(anywhere)}
        return Grade(0.0, f"no line `answer: ...` in {shown(text)}", answered=False, parts=parts)
    exact = any(_plain(answer) == _plain(reference) for reference in references)
    parts = {"exact": float(exact), "anywhere": float(anywhere)}
    return binary(relaxed(answer, references), differs(answer, references), parts=parts)


def anls(answer: str, references: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity of one question: 1 - distance / longer length to the nearest reference,
    or 0 where that is below 0.5."""
    best = max(similarity(_plain(answer), _plain(reference)) for reference in references)
    return best if best >= ANLS_THRESHOLD else 0.0


def similarity(one: str, other: str) -> float:
    """1 - edit distance / length of the longer text; 0 for a text of more than `MAX_COMPARED` characters, unless both
    are equal."""
    if one == other:
        return 1.0
    if max(len(one), len(other)) > MAX_COMPARED:
        return 0.0
    return 1.0 - edit_distance(one, other) / max(len(one), len(other))


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: the least number of characters to insert, delete or replace."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def grade_anls(text: str, references: Sequence[str]) -> Grade:
    """The ANLS of the stated answer."""
    answer = stated_answer(text)
    if answer is None:
        return Grade(0.0, f"no line `answer: ...` in {shown(text)}", answered=False)
    score = anls(answer, references)
    return Grade(score, "" if score == 1 else differs(answer, references))

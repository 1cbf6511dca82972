"""Answers of competition mathematics: the last `\\boxed{}`, compared as text and then symbolically, within limits."""

import re
import unicodedata

from data.graders import symbolic
from data.graders.base import Grade, binary, shown
from data.graders.matching import differs

MAX_ANSWER = 1_000
"""Longest answer that is compared, in characters."""
_BOXED = re.compile(r"\\f?boxed\s*(?=\{)|\\framebox\s*(?=\{)|\\boxed\s+(\S+)")
_STATED = re.compile(
    r"(?:final answer|answer)(?:\s+is)?\s*[:=]?\s*\$?([^\n$]+?)\$?\s*\.?\s*$", re.IGNORECASE | re.MULTILINE
)
_SPACES = re.compile(r"\\[,;:!]|\\ |\\q?quad|~|\s+")
_DROPPED = re.compile(
    r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\mathrm(?=\{)|\\text(?:bf|it)?(?=\{)|\\%|%|\\\$|\$"
)
UNITS = "cm|m|km|in|ft|feet|inches|degrees|dollars|units|square units|hours|minutes|seconds"
_UNITS = re.compile(rf"\^\{{?\\circ\}}?|\\(?:text|mbox|mathrm)\{{\s*(?:{UNITS})\s*\}}(?:\^\{{?\d\}}?)?")


def answer_in(text: str) -> str | None:
    """The content of the last `\\boxed{}` of a reply, with balanced braces; without one, what follows the last
    `answer is` or `answer:`; None: neither is there."""
    boxed = None
    for found in _BOXED.finditer(text):
        inner = found[1] if found[1] is not None else _braced(text, found.end())
        boxed = inner if inner is not None else boxed
    if boxed is not None:
        return boxed.strip() or None
    stated = _STATED.findall(text)
    return stated[-1].strip().strip("*") or None if stated else None


def _braced(text: str, begin: int) -> str | None:
    depth = 0
    for i in range(begin, len(text)):
        if text[i] == "{" and text[i - 1] != "\\":
            depth += 1
        elif text[i] == "}" and text[i - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[begin + 1 : i]
    return None


def plain(answer: str) -> str:
    """An answer as text is compared: without spaces, units and other marks that change nothing."""
    text = unicodedata.normalize("NFKC", answer).strip().rstrip(".")
    text = _UNITS.sub("", text)
    text = _SPACES.sub("", _DROPPED.sub("", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = re.sub(r"\\(frac|sqrt)(\d)", r"\\\1{\2}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\d)", r"\1{\2}", text)
    text = re.sub(r"^[a-zA-Z]=", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    if re.fullmatch(r"[-+]?\d+", text):
        text = str(int(text)) if len(text) <= 300 else text
    return text.replace("{", "").replace("}", "")


def grade_answer(text: str, reference: str) -> Grade:
    """Score 1 if the answer of a reply equals the reference: as text, or as mathematics. The part `text`: as text."""
    answer = answer_in(text)
    if answer is None:
        return Grade(0.0, f"no \\boxed answer in {shown(text[-200:])}", answered=False, parts={"text": 0.0})
    if len(answer) > MAX_ANSWER:
        return Grade(0.0, f"an answer of {len(answer):,} characters", parts={"text": 0.0})
    as_text = plain(answer) == plain(reference)
    problem = "" if as_text else symbolic.difference(reference, answer)
    reason = differs(answer, [reference]) + (f" ({problem})" if problem not in ("", "differs") else "")
    return binary(not problem, reason, parts={"text": float(as_text)})

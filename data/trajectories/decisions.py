"""What each turn of an assistant decides: to call, to answer, or to ask the user back; and where that can be seen.

Known from the normal form. A turn with a call is a call. Another is a question if its message says so (a field
`decision`: `ask` or `answer`), or else if its text ends in a question mark, quotes, brackets and white space after it
left out.
"""

import enum
import string

import numpy as np

from data.trajectories.kinds import decisions
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Kind, Rendered, Role
from maverick_jax.text.chat.reply import CALLING

FIELD = "decision"
"""Of a message without calls, among its fields of no place in the normal form."""
QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_CLOSERS = string.whitespace + "\"')]}*_`\u2019\u201d\u00bb"


class Decision(enum.IntEnum):
    """The numbers are stored in data."""

    CALL = 1
    ANSWER = 2
    ASK = 3


CLASSES = tuple(decision.name.lower() for decision in Decision)

# What a token is to decisions, uint8, these parts added up:
DECIDES = 0b11
"""The Decision of a turn, on the token where it is seen whether it calls: the first of its calls, or of its text."""
CLOSES_SHIFT = 2
CLOSES = 0b11 << CLOSES_SHIFT
"""The Decision of a turn without calls, on the last token of its text that is more than closing marks."""
NAME, ARGUMENTS = 1 << 4, 1 << 5
"""On each token that holds a part of a called tool's name, of its arguments."""


def decision_of(step: Step) -> Decision:
    """Of an assistant's message."""
    if step.message.calls:
        return Decision.CALL
    declared = step.extra.get(FIELD)
    asks = declared == "ask" if declared in ("ask", "answer") else is_question(step.message.text)
    return Decision.ASK if asks else Decision.ANSWER


def is_question(text: str) -> bool:
    return text.rstrip(_CLOSERS).endswith(QUESTION_MARKS)


def choices(trajectory: Trajectory, rendered: Rendered, tokenizer: Tokenizer) -> np.ndarray:
    """uint8[T]: what each token of `rendered` is to decisions; 0 for most."""
    found = np.zeros(rendered.ids.size, np.uint8)
    called: set[int] = set()
    said: dict[int, list[int]] = {}
    for span in rendered.spans:
        if span.begin == span.end or span.role is not Role.ASSISTANT:
            continue
        begins_calls = span.kind is Kind.CONTROL and span.text == CALLING[0]
        if span.message not in called and (begins_calls or span.call >= 0):
            called.add(span.message)
            found[span.begin] |= Decision.CALL
        if span.kind in (Kind.CALL_NAME, Kind.CALL_ARGUMENTS):
            found[span.begin : span.end] |= NAME if span.kind is Kind.CALL_NAME else ARGUMENTS
        if span.kind is Kind.TEXT:
            said.setdefault(span.message, []).extend(range(span.begin, span.end))
    for message, at in decisions(rendered).items():
        step = trajectory.steps[message]
        if not step.message.calls:
            decision = decision_of(step)
            found[at] |= decision
            if (end := _closing(rendered.ids, said.get(message, []), tokenizer)) is not None:
                found[end] |= decision << CLOSES_SHIFT
    return found


def _closing(ids: np.ndarray, said: list[int], tokenizer: Tokenizer) -> int | None:
    whole = (at for at in reversed(said) if tokenizer.decode([ids[at]]).strip(_CLOSERS))
    return next(whole, None)


def count(choices: np.ndarray) -> np.ndarray:
    """int64[3]: turns by Decision, of tokens' `choices`."""
    return np.bincount(choices & DECIDES, minlength=len(Decision) + 1)[1:]


def balance(turns: np.ndarray, most: float) -> np.ndarray:
    """float32[4]: by Decision (0: of none, 1), what to multiply a decision's weight with so that every class counts
    alike, as far as no factor is more than `most`. `turns` int64[3]: of each class. Their mean over turns is 1."""
    factors = np.ones(len(Decision) + 1, np.float32)
    there = np.flatnonzero(turns)
    total, capped = turns.sum(), np.zeros(turns.size, bool)
    for _ in there:
        free = [i for i in there if not capped[i]]
        share = (total - most * turns[capped].sum()) / max(len(free), 1)
        for i in there:
            factors[1 + i] = most if capped[i] else share / turns[i]
        if not (over := factors[1:] > most).any():
            break
        capped |= over
    return factors

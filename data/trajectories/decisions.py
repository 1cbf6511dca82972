"""The decision of each assistant turn: to call a tool, to answer, or to ask the user; and the tokens that show it.

Decisions follow from the normal form. A turn with a call is a call. Any other turn is a question if its message has the
field `decision: ask`, or if it has no such field and its text ends in a question mark, ignoring quotes, brackets and
white space after it.
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
"""Field in the `extra` of a message without calls that gives its decision: `ask` or `answer`."""
QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_CLOSERS = string.whitespace + "\"')]}*_`\u2019\u201d\u00bb"


class Decision(enum.IntEnum):
    """Decision of an assistant turn. The numbers are stored in data."""

    CALL = 1
    ANSWER = 2
    ASK = 3


CLASSES = tuple(decision.name.lower() for decision in Decision)

# A token's role in decisions, as the sum of these parts in a uint8:
DECIDES = 0b11
"""Mask of the turn's Decision, set on the token that shows whether it calls: the first of its calls or of its text."""
CLOSES_SHIFT = 2
CLOSES = 0b11 << CLOSES_SHIFT
"""Mask of the Decision of a turn without calls, set on the last token of its text that is more than closing marks."""
NAME, ARGUMENTS = 1 << 4, 1 << 5
"""Set on each token of a called tool's name, and of its arguments."""


def decision_of(step: Step) -> Decision:
    """The decision of an assistant message."""
    if step.message.calls:
        return Decision.CALL
    declared = step.extra.get(FIELD)
    asks = declared == "ask" if declared in ("ask", "answer") else is_question(step.message.text)
    return Decision.ASK if asks else Decision.ANSWER


def is_question(text: str) -> bool:
    return text.rstrip(_CLOSERS).endswith(QUESTION_MARKS)


def choices(trajectory: Trajectory, rendered: Rendered, tokenizer: Tokenizer) -> np.ndarray:
    """uint8[T]: the role of each token of `rendered` in decisions; 0 for most."""
    found = np.zeros(rendered.ids.size, np.uint8)
    called: set[int] = set()
    texts: dict[int, list[int]] = {}
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
            texts.setdefault(span.message, []).extend(range(span.begin, span.end))
    for message, at in decisions(rendered).items():
        step = trajectory.steps[message]
        if not step.message.calls:
            decision = decision_of(step)
            found[at] |= decision
            if (end := _closing(rendered.ids, texts.get(message, []), tokenizer)) is not None:
                found[end] |= decision << CLOSES_SHIFT
    return found


def _closing(ids: np.ndarray, text: list[int], tokenizer: Tokenizer) -> int | None:
    """The last index in `text` whose token is more than closing marks."""
    return next((at for at in reversed(text) if tokenizer.decode([ids[at]]).strip(_CLOSERS)), None)


def count(choices: np.ndarray) -> np.ndarray:
    """int64[3]: number of turns with each Decision, from the `choices` of tokens."""
    return np.bincount(choices & DECIDES, minlength=len(Decision) + 1)[1:]


def balance(turns: np.ndarray, most: float) -> np.ndarray:
    """float32[4]: factor of the loss weight of each Decision (index 0: 1, for other tokens), so that all classes have
    the same total weight as far as no factor exceeds `most`. The mean factor over turns is 1. `turns`: int64[3], number
    of turns of each class."""
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

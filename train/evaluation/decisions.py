"""Metrics of decisions: whether the model calls, answers or asks as the trajectory does, and with which tool and
arguments.

This file computes them by teacher forcing, from the counts of `train.objectives.decision_counts`: the model's most
likely token is right if it is the label. A wrong token counts as a call if calls begin with it, and as a question if
the rule for texts (`data.trajectories.decisions`) says so. `train.evaluation.generated` computes them by generation.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data.rows.dataset import Dataset
from data.trajectories.decisions import CLASSES, is_question
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Conversation, Message, Role, ToolCall, render
from maverick_jax.text.chat.reply import CALLING
from train.objectives.decision_counts import DECISIONS, Counts


def decision_metrics(sums: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Metrics of the decisions counted in an objective's `sums` over `data`, as `report` returns them; empty if it
    counts none. Answers and questions are distinguished by the last token of a turn's text, given that the turn makes
    no call."""
    if DECISIONS not in sums:
        return {}
    counts: Counts = sums[DECISIONS]
    right, wrong, (names, arguments) = (np.asarray(counts[name], np.int64) for name in ("right", "wrong", "calls"))
    tokens = np.flatnonzero(wrong.any(axis=0))
    calling = begins_call(tokens, data.tokenizer, dialects_of(data))
    asking = np.array([is_question(data.tokenizer.decode([token])) for token in tokens.tolist()], bool)
    total, wrong = right + wrong.sum(axis=1), wrong[:, tokens]
    called, asked = wrong[:3] @ calling, wrong[3:] @ asking
    called[0] += right[0]
    asked[1] += right[4]
    turns, closed = total[:3], total[3:]
    hits = np.array([called[0], closed[0] - asked[0], asked[1]])
    false = np.array([called[1:].sum(), closed[1] - asked[1], asked[0]])
    missed = np.array([turns[0] - called[0], asked[0], closed[1] - asked[1]])
    found = report(turns, hits, false, missed, called)
    found["call_rates"] |= rates(name_accuracy=names, arguments_exact=arguments)
    return found


def dialects_of(data: Dataset) -> frozenset[str]:
    """The chat dialects in which the trajectories of the data are written."""
    metas = [source.store.meta for source in data.sources]
    return frozenset(meta["dialect"] for meta in metas if "dialect" in meta)


def begins_call(tokens: np.ndarray, tokenizer: Tokenizer, dialects: frozenset[str]) -> np.ndarray:
    """bool[n]: whether a turn that begins with each token counts as a call, given how the dialects write calls."""
    call = Conversation((Message(Role.USER, "a"), Message(Role.ASSISTANT, calls=(ToolCall("a", {}),))))
    calls = [next(s.text for s in render(call, tokenizer, d).spans if s.call >= 0) for d in dialects]
    opening = tuple(text.lstrip()[0] for text in calls)
    begins = lambda token: tokenizer.decode([token]).lstrip().startswith(opening)
    around = tokenizer.controls.get(CALLING[0])
    return np.array([token == around or begins(token) for token in tokens.tolist()], bool)


def report(
    turns: np.ndarray, hits: np.ndarray, false: np.ndarray, missed: np.ndarray, called: np.ndarray
) -> dict[str, Any]:
    """Metrics of decisions from counts by class of turn, each int64[3]. `turns`: all turns; `hits`, `false` and
    `missed`: true positives, false positives and false negatives; `called`: turns that the model answers with a call.

    Returns, by class: the number of turns, `decisions`; and `decision_precision`, `decision_recall` and `decision_f1`,
    each without the classes for which it is undefined. Also `call_rates`: `over_call`, the fraction of answers and
    questions where the model calls, and `under_call`, the fraction of calls where it does not.
    """
    judged, there = hits + false, hits + missed
    ratios = {"precision": (hits, judged), "recall": (hits, there), "f1": (2 * hits, judged + there)}
    by_class = lambda pair: {n: a / b for n, a, b in zip(CLASSES, *(x.tolist() for x in pair), strict=True) if b}
    found: dict[str, Any] = {"decisions": dict(zip(CLASSES, turns.tolist(), strict=True))}
    found |= {f"decision_{name}": by_class(pair) for name, pair in ratios.items()}
    return found | {
        "call_rates": rates(over_call=(turns[1:].sum(), called[1:].sum()), under_call=(turns[0], turns[0] - called[0]))
    }


def rates(**parts: Iterable[int]) -> dict[str, float]:
    """Fractions from pairs (whole, part), without those whose whole is 0."""
    return {name: float(part / whole) for name, (whole, part) in parts.items() if whole}

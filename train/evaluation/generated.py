"""How well a model decides and calls where it writes for itself: turns of held-out agent runs, each after all that its
run has before it, read back as the chat format reads calls."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.rows.dataset import Dataset
from data.rows.turns import Turn, turns_of
from data.trajectories.decisions import CLASSES, Decision, is_question
from maverick_jax.errors import InputError
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Reply, ToolCall, find_dialect
from train.evaluation.decisions import rates, report

Answer = Callable[[Sequence[Sequence[int]]], list[list[int]]]
"""Prompts as token ids -> what a model writes after each, the token that ends it included."""


def generated(answer: Answer, data: Dataset, count: int, ends: frozenset[int]) -> dict[str, Any]:
    """`judged` of `count` turns, evenly spread over those of `data`, or all where it has fewer; and of how many,
    `turns`. Those that begin beyond `data.sequence_length` are left out: `turns_too_long`. `ends`: tokens that end an
    answer. Raises InputError where no turn is left."""
    turns = list(turns_of(data))
    fitting = [turn for turn in turns if turn.begin - turn.run <= data.config.sequence_length]
    if not fitting:
        raise InputError(f"--generate: of the held-out agent runs' {len(turns)} assistant turns none begins within "
                         f"data.sequence_length ({data.config.sequence_length})")  # fmt: skip
    spread = np.linspace(0, len(fitting) - 1, min(count, len(fitting)))
    chosen = [fitting[i] for i in spread.round().astype(int).tolist()]
    found = judged(chosen, answer([turn.prompt for turn in chosen]), data.tokenizer, ends)
    return found | {"turns": len(chosen), "turns_too_long": len(turns) - len(fitting)}


def judged(
    turns: Sequence[Turn], answers: Sequence[Sequence[int]], tokenizer: Tokenizer, ends: frozenset[int]
) -> dict[str, Any]:
    """As `decisions.report`, of what was written in place of these turns; and in `call_rates`, of turns that called:
    `name_accuracy`, the same tools were called; `arguments_exact`, the same calls were made, parsed, whatever
    the order of parallel calls and of arguments. Of all turns: `unparsable`, meant as calls and none, which is a guess
    of no class; `unfinished`, did not end in time."""
    confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)  # [class, guess]
    every = np.zeros(len(CLASSES), np.int64)
    same = Counter[str]()
    for turn, ids in zip(turns, answers, strict=True):
        dialect = find_dialect(turn.dialect)
        reply = dialect.parse_calls(ids, tokenizer)
        every[turn.decision - 1] += 1
        same["unfinished"] += not ends.intersection(ids)
        if isinstance(reply, CallError):
            same["unparsable"] += 1
            continue
        confusion[turn.decision - 1, _decision(reply) - 1] += 1
        if turn.decision is Decision.CALL:
            expected = dialect.parse_calls(turn.said, tokenizer)
            wanted = expected.calls if isinstance(expected, Reply) else ()
            same["names"] += Counter(call.name for call in reply.calls) == Counter(call.name for call in wanted)
            same["calls"] += Counter(map(_exactly, reply.calls)) == Counter(map(_exactly, wanted))
    hits = np.diag(confusion)
    found = report(every, hits, confusion.sum(axis=0) - hits, every - hits, confusion[:, 0])
    with_calls, total = int(every[0]), len(turns)
    found["call_rates"] |= rates(
        name_accuracy=(with_calls, same["names"]),
        arguments_exact=(with_calls, same["calls"]),
        unparsable=(total, same["unparsable"]),
        unfinished=(total, same["unfinished"]),
    )
    return found


def _decision(reply: Reply) -> Decision:
    if reply.calls:
        return Decision.CALL
    return Decision.ASK if is_question(reply.text) else Decision.ANSWER


def _exactly(call: ToolCall) -> tuple[str, str]:
    """Equal for equal calls; 1, 1.0 and true are three values."""
    return call.name, json.dumps(call.arguments, sort_keys=True)

"""Evaluates decisions and calls that a model generates: it writes turns of held-out trajectories, each after its
prefix, which are then parsed in the chat format."""

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

Answer = Callable[[Sequence[list[int]], Sequence[np.ndarray | None]], list[list[int]]]
"""Prompts as token ids, and the tiles that each shows -> the model's answer to each, including the token that ends
it."""


def generated(answer: Answer, data: Dataset, count: int, ends: frozenset[int]) -> dict[str, Any]:
    """The result of `judged` for `count` turns, evenly spaced over the turns of `data`, or for all turns if there are
    fewer. Also their number, `turns`, and `turns_too_long`, the number of skipped turns that begin beyond
    `data.sequence_length`. `ends`: tokens that end an answer. Raises InputError if no turn remains."""
    turns = list(turns_of(data))
    fitting = [turn for turn in turns if turn.begin - turn.run <= data.config.sequence_length]
    if not fitting:
        raise InputError(f"--generate: none of the {len(turns)} held-out assistant turns begins within "
                         f"data.sequence_length ({data.config.sequence_length})")  # fmt: skip
    spread = np.linspace(0, len(fitting) - 1, min(count, len(fitting)))
    chosen = [fitting[i] for i in spread.round().astype(int).tolist()]
    found = judged(
        chosen, answer([turn.prompt for turn in chosen], [turn.tiles for turn in chosen]), data.tokenizer, ends
    )
    return found | {"turns": len(chosen), "turns_too_long": len(turns) - len(fitting)}


def judged(
    turns: Sequence[Turn], answers: Sequence[Sequence[int]], tokenizer: Tokenizer, ends: frozenset[int]
) -> dict[str, Any]:
    """`decisions.report` for answers generated in place of these turns, with four more `call_rates`. Among turns that
    call: `name_accuracy`, the answer calls the same tools; `arguments_exact`, it makes the same calls once parsed, in
    any order of parallel calls and of arguments. Among all turns: `unparsable`, the answer is a malformed call, which
    counts for no class; `unfinished`, it did not end in time."""
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
    """A key that is equal for equal calls; 1, 1.0 and true are different values."""
    return call.name, json.dumps(call.arguments, sort_keys=True)

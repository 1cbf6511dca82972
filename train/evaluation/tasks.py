"""Evaluates a model on tasks: grades its answers, and reports the mean score with its standard error."""

import collections
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from data.tasks import Example, Grade, Task, read_tasks
from maverick_jax.errors import InputError, harmless
from maverick_jax.inference.replies import read_reply
from maverick_jax.inference.sampler import stop_ids
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import DEFAULT, CallError, Reply, render

Answer = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""(Prompts as token ids, maximum number of tokens per answer) -> the model's answer to each, including the token that
ends it."""
SHOWN = 3
"""Number of wrong answers that are shown per task."""


class OpenTask(NamedTuple):
    """A task with its examples."""

    name: str
    task: Task
    examples: Sequence[Example]
    prompts: Sequence[Sequence[int]]
    """Token ids of each example."""


def open_tasks(names_or_files: Iterable[str], tokenizer: Tokenizer) -> list[OpenTask]:
    """Reads tasks and encodes their examples as token ids, so that all errors are found before a model runs. Raises
    InputError, which names the file and the line."""
    found: dict[str, OpenTask] = {}
    for given in names_or_files:
        for name, task in read_tasks(given).items():
            if name in found:
                raise InputError(f"--tasks {given}: the task {name!r} is given twice")
            examples = task.examples()[: task.limit]
            found[name] = OpenTask(name, task, examples, [_prompt(e, name, tokenizer) for e in examples])
    return list(found.values())


def _dialect(tokenizer: Tokenizer) -> str:
    return tokenizer.dialect or DEFAULT


def _prompt(example: Example, name: str, tokenizer: Tokenizer) -> list[int]:
    try:
        if isinstance(example.prompt, str):
            return [*([] if tokenizer.bos_id is None else [tokenizer.bos_id]), *tokenizer.encode(example.prompt)]
        return render(example.prompt, tokenizer, _dialect(tokenizer), add_generation_prompt=True).ids.tolist()
    except InputError as error:
        raise InputError(f"task {name}: example {example.id[:80]}: {error}") from None


def run_task(opened: OpenTask, answer: Answer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Runs a task. Returns JSON values: the number of examples `n`; the `mean` score and its `standard_error` (null if
    n is 1); the number of `correct` answers (score 1) and of answers `not_understood` (unfinished, empty, or a
    malformed call; score 0); and `examples`, each with id, score and reason."""
    written = answer(opened.prompts, opened.task.max_tokens)
    grades, counts = [], collections.Counter[str]()
    for example, ids in zip(opened.examples, written, strict=True):
        reply = _reply(example, ids, tokenizer)
        counts["not_understood"] += isinstance(reply, CallError)
        grade = Grade(0.0, reply.reason) if isinstance(reply, CallError) else opened.task.grade(example, reply)
        counts["correct"] += grade.score == 1
        grades.append(grade)
    scores = [grade.score for grade in grades]
    rows = [{"id": e.id, "score": g.score, "reason": g.reason} for e, g in zip(opened.examples, grades, strict=True)]
    return {
        "n": len(scores),
        "mean": statistics.fmean(scores),
        "standard_error": statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
        "correct": counts["correct"],
        "not_understood": counts["not_understood"],
        **opened.task.info._asdict(),
        "examples": rows,
    }


def _reply(example: Example, ids: Sequence[int], tokenizer: Tokenizer) -> Reply | CallError:
    """The parsed answer. The continuation of a text may be unfinished: its task takes the part that it needs."""
    if not isinstance(example.prompt, str):
        return read_reply(ids, tokenizer, _dialect(tokenizer))
    stops = stop_ids(tokenizer)
    return Reply(tokenizer.decode([i for i in ids if i not in stops]))


def table(found: dict[str, dict[str, Any]]) -> Table:
    """A table of the results of `run_task`, by task."""
    shown = Table("task", title="tasks")
    for column in ("n", "mean", "standard error", "correct", "not understood"):
        shown.add_column(column, justify="right")
    shown.add_column("license")
    for name, task in found.items():
        error = "-" if task["standard_error"] is None else f"{task['standard_error']:.3f}"
        counts = [f"{task[key]:,}" for key in ("correct", "not_understood")]
        shown.add_row(
            harmless(name), f"{task['n']:,}", f"{task['mean']:.3f}", error, *counts, harmless(task["license"])
        )
    return shown


def wrong_answers(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each of the first `SHOWN` examples of each task with a score below 1."""
    lines = []
    for name, task in found.items():
        wrong = [example for example in task["examples"] if example["score"] < 1]
        lines += [harmless(f"{name}, example {e['id']}: {e['reason']}") for e in wrong[:SHOWN]]
    return lines

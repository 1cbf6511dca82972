"""Evaluates a model on tasks: asks an engine, grades the answers, and reports figures with their intervals."""

import hashlib
import statistics
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.graders.base import Grade
from data.graders.figures import figure
from data.graders.loops import loop_in
from data.tasks import Example, Graded, Task, read_tasks
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import Engine, GenerationRequest
from maverick_jax.inference.prompts import stop_ids
from maverick_jax.inference.replies import read_reply
from maverick_jax.inference.sampling import Sampling
from maverick_jax.network import VisionConfig
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import CallError, Reply
from train.evaluation.asking import (
    Continuation,
    OnProgress,
    WrittenAnswer,
    continuation,
    dialect_of,
    likelihoods,
    marked_prompt,
    written,
)
from train.evaluation.task_pictures import TaskPictures


class OpenTask(NamedTuple):
    """A task with its examples."""

    name: str
    task: Task
    examples: Sequence[Example]
    prompts: Sequence[Sequence[int]]
    """Token ids of each example."""
    choices: Sequence[Sequence[Continuation]]
    """Of each example, its prompt with each of its choices; empty for one whose answer is written."""
    pictures: TaskPictures | None = None
    """None: no example shows a picture."""
    marks: Sequence[np.ndarray | None] = ()
    """Of each example, what the tokens of its prompt are to reasoning heads; None: nothing."""


def open_tasks(
    names_or_files: Iterable[str],
    tokenizer: Tokenizer,
    allow_code: bool = False,
    encoder: VisionConfig | None = None,
) -> list[OpenTask]:
    """Reads tasks and encodes their examples as token ids, so that all errors are found before a model runs; each
    picture is decoded once. `encoder`: the model's image encoder. Raises InputError, which names the file and the line;
    and for tasks that run programs, unless `allow_code`, and tasks with pictures, unless there is an encoder."""
    found: dict[str, OpenTask] = {}
    for given in names_or_files:
        for name, task in read_tasks(given).items():
            if name in found:
                raise InputError(f"--tasks {given}: the task {name!r} is given twice")
            if task.runs_code and not allow_code:
                raise InputError(f"task {name}: it runs programs that the model writes; --allow-code permits it")
            task.require()
            found[name] = _opened(name, task, tokenizer, encoder)
    return list(found.values())


def _opened(name: str, task: Task, tokenizer: Tokenizer, encoder: VisionConfig | None) -> OpenTask:
    examples = task.examples_for(tokenizer)[: task.limit]
    if not examples:
        raise InputError(f"task {name}: there are no examples")
    seen = any(example.images for example in examples)
    pictures = _checked(name, lambda: TaskPictures(encoder, tokenizer)) if seen else None
    prompts, choices, marks = [], [], []
    for example in examples:
        try:
            prompt = pictures.shown(example) if pictures and example.images else example.prompt
            ids, marked = marked_prompt(prompt, tokenizer)
            prompts.append(ids)
            marks.append(marked)
            choices.append([continuation(example.prompt, text, tokenizer) for text in example.choices])
        except InputError as error:
            raise InputError(f"task {name}: example {example.id[:80]}: {error}") from None
    return OpenTask(name, task, examples, prompts, choices, pictures, marks)


def context_of(opened: Iterable[OpenTask]) -> int:
    """Most tokens of a prompt and its answer, rounded up to a multiple of 128."""
    longest = 0
    for task in opened:
        longest = max([longest, *(len(prompt) + task.task.max_tokens for prompt in task.prompts)])
        longest = max([longest, *(len(one.tokens) for choices in task.choices for one in choices)])
    return -(-longest // 128) * 128


def run_task(
    opened: OpenTask, engine: Engine, tokenizer: Tokenizer, on_progress: OnProgress = lambda done: None
) -> dict[str, Any]:
    """Runs a task. Returns JSON values: `n` examples; figures (`data.graders.figures.Figure`): the `score`, the `parts`
    of it by other rules, the task's own `figures`, and the shares of answers that are `unanswered` (nothing that could
    be graded was found), `malformed` (empty, or a call that cannot be parsed), `cut` by the limit of tokens, and cut in
    a `loop`; `examples`, each with its tokens and text as written, grade and reason; and for some tasks the `grid` of
    scores by length and depth (`data.graders.grids.Grid`). Unfinished messages and
    malformed ones score 0. Raises InputError for an example that is longer than the engine's context."""
    rows = _likeliest(opened, engine, on_progress) if any(opened.choices) else []
    rows += _written(opened, engine, tokenizer, on_progress) if not all(opened.choices) else []
    graded = [row.graded for row in rows]
    groups = [one.example.group if one.example.group is not None else (one.example.id,) for one in graded]
    scores = [one.grade.score for one in graded]
    parts = list(dict.fromkeys(name for one in graded for name in one.grade.parts))
    answers = [row for row in rows if row.answer is not None]
    loops = [row.loop for row in answers if row.loop is not None]
    share = lambda values: figure([float(value) for value in values]).as_json() if values else None
    found: dict[str, Any] = {
        "kind": getattr(opened.task, "kind", type(opened.task).__name__),
        "n": len(rows),
        "score": figure(scores, groups).as_json(),
        "parts": {name: _part(graded, groups, name) for name in parts},
        "figures": {name: one.as_json() for name, one in opened.task.figures(graded).items()},
        "correct": sum(score == 1 for score in scores),
        "digest": _digest(opened.examples),
        "unanswered": share([not one.grade.answered for one in graded]),
        "malformed": share([row.malformed for row in answers]),
        "cut": share([row.answer.cut for row in answers if row.answer is not None]),
        "loop": share([row.loop is not None for row in answers]),
        "tokens_before_loop": statistics.fmean(loops) if loops else None,
        **opened.task.info._asdict(),
        "examples": [row.as_json() for row in rows],
    }
    if (grid := opened.task.grid(graded)) is not None:
        found["grid"] = grid.as_json()
    return found


def _digest(examples: Sequence[Example]) -> str:
    """Equal for equal examples in equal order."""
    asked = hashlib.sha256()
    for example in examples:
        asked.update(repr((example.id, example.prompt, example.references, example.choices)).encode("utf-8"))
    return asked.hexdigest()[:16]


def _part(graded: Sequence[Graded], groups: Sequence[Any], name: str) -> dict[str, Any]:
    having = [
        (one.grade.parts[name], group) for one, group in zip(graded, groups, strict=True) if name in one.grade.parts
    ]
    return figure([score for score, _ in having], [group for _, group in having]).as_json()


class _Line(NamedTuple):
    """One example as it is kept."""

    graded: Graded
    text: str
    answer: WrittenAnswer | None = None
    """What the model wrote; None: its choices were scored."""
    log_probs: Sequence[float] = ()
    malformed: bool = False
    loop: int | None = None
    """Tokens before the loop in which the answer was cut."""

    def as_json(self) -> dict[str, Any]:
        example, _, grade = self.graded
        kept = {"group": example.group, "parts": dict(grade.parts), "log_probs": list(self.log_probs)}
        if self.answer is not None:
            kept |= {"tokens": list(self.answer.tokens), "cut": self.answer.cut, "loop": self.loop}
        kept = {name: value for name, value in kept.items() if value not in (None, {}, [])}
        same = {"id": example.id, "text": self.text, "score": grade.score, "reason": grade.reason}
        return same | {"answered": grade.answered} | kept


def _likeliest(opened: OpenTask, engine: Engine, on_progress: OnProgress) -> list[_Line]:
    asked = [one for choices in opened.choices for one in choices]
    scored = iter(_checked(opened.name, lambda: likelihoods(engine, asked, on_progress)))
    rows = []
    for example in opened.examples:
        log_probs = [next(scored).log_prob for _ in example.choices]
        if log_probs:
            chosen = example.choices[max(range(len(log_probs)), key=log_probs.__getitem__)]
            grade = opened.task.grade_choice(example, log_probs)
            rows.append(_Line(Graded(example, Reply(chosen), grade), chosen, log_probs=log_probs))
    return rows


def _written(opened: OpenTask, engine: Engine, tokenizer: Tokenizer, on_progress: OnProgress) -> list[_Line]:
    ends, greedy = stop_ids(tokenizer), Sampling(temperature=0.0)
    marks = opened.marks or [None] * len(opened.prompts)
    asked = [(e, *of) for e, *of in zip(opened.examples, opened.prompts, marks, strict=True) if not e.choices]
    requests = (  # made one after the other, because tiles of many pictures need much memory
        GenerationRequest(prompt, opened.task.max_tokens, greedy, _seed(opened.name, example.id), ends,
                          opened.task.stop_texts, opened.pictures.tiles(example) if opened.pictures else None, marked)
        for example, prompt, marked in asked
    )  # fmt: skip
    answers = _checked(opened.name, lambda: written(engine, requests, on_progress))
    rows = []
    for (example, *_), answer in zip(asked, answers, strict=True):
        reply = _reply(example, answer.tokens, tokenizer)
        bad = isinstance(reply, CallError)
        grade = Grade(0.0, reply.reason, answered=False) if bad else opened.task.grade(example, reply)
        text = tokenizer.decode(answer.tokens, controls=True)
        loop = loop_in(answer.tokens) if answer.cut else None
        rows.append(_Line(Graded(example, reply, grade), text, answer, malformed=bad and not answer.cut, loop=loop))
    return rows


def _seed(task: str, example: str) -> int:
    return zlib.crc32(f"{task} {example}".encode())


def _checked(name: str, ask):
    try:
        return ask()
    except InputError as error:
        raise InputError(f"task {name}: {error}") from None


def _reply(example: Example, ids: Sequence[int], tokenizer: Tokenizer) -> Reply | CallError:
    """The parsed answer. The continuation of a text may be unfinished: its task takes the part that it needs."""
    if not isinstance(example.prompt, str):
        return read_reply(ids, tokenizer, dialect_of(tokenizer))
    stops = stop_ids(tokenizer)
    return Reply(tokenizer.decode([i for i in ids if i not in stops]))

"""The evaluations of a run while it trains: held-out loss, and tasks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.text import Tokenizer
from train.evaluation.tasks import OpenTask, run_task
from train.session import Session
from train.state import TrainState

FIGURES = ("value", "low", "high", "n")
SHARES = ("unanswered", "malformed", "cut", "loop")


class Evaluating(NamedTuple):
    """One kind of evaluation."""

    evaluate: Callable[[TrainState], dict[str, Any]]
    """Train state -> metrics of an evaluation line."""
    every: int
    """Steps between two of them."""
    keys: str = ""
    """The config keys that say how often and how long it is; empty: those of the held-out loss."""


def evaluations(session: Session, used: Callable[[TrainState], Any], references: dict[str, Any]) -> list[Evaluating]:
    """Those that the config asks for. `used`: the model of a train state, as it is evaluated."""
    run, objective, found = session.config.run, session.config.objective, []
    if run.eval_every:
        measured = session.held_out.measure_states(objective, used, references)
        found.append(Evaluating(measured, run.eval_every))
    if session.tasks:
        asked = lambda state: task_metrics(session.tasks, used(state), session.tokenizer)
        keys = "run.eval_tasks_every is the steps between them, `limit` in the tasks' files their length"
        found.append(Evaluating(asked, run.eval_tasks_every or run.steps, keys))
    return found


def task_metrics(tasks: Sequence[OpenTask], model: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Values by name of the task: `eval_task_value`, the score, with the ends `low` and `high` of its interval and its
    `n`; and the shares of `evaluation.tasks.run_task`, where answers are written."""
    with PlainEngine(model, tokenizer) as engine:
        found = {task.name: run_task(task, engine, tokenizer) for task in tasks}
    metrics = {f"eval_task_{key}": {name: one["score"][key] for name, one in found.items()} for key in FIGURES}
    for share in SHARES:
        values = {name: one[share]["value"] for name, one in found.items() if one[share] is not None}
        metrics |= {f"eval_task_{share}": values} if values else {}
    return metrics

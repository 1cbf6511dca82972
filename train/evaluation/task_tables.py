"""Shows results of tasks as tables in a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from maverick_jax.errors import harmless

SHOWN = 3
"""Number of wrong answers that are shown per task."""
SHARES = {"unanswered": "without answer", "malformed": "malformed", "cut": "cut", "loop": "in a loop"}
"""Shares of answers, and what they are called."""


def table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results of `run_task` by task: the score, and below it scores by other rules and further figures. `n` is followed
    by the number of sources where examples share one."""
    shown = Table("task", title="tasks")
    for column in ("n", "score", "95% interval"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("answers")
    for name, task in found.items():
        shown.add_row(harmless(name), *_cells(task["score"]), _shares(task))
        for part, one in {**task["parts"], **task["figures"]}.items():
            shown.add_row(f"  {harmless(part)}", *_cells(one))
    return shown


def _cells(one: Mapping[str, Any]) -> tuple[str, str, str]:
    sources = f" of {one['clusters']:,}" if one.get("clusters") else ""
    return f"{one['n']:,}{sources}", f"{one['value']:.3f}", f"{one['low']:.3f}-{one['high']:.3f}"


def comparison_table(found: Mapping[str, Any]) -> Table:
    """The result of `results.compare`."""
    first, second = (harmless(name) for name in found["models"])
    shown = Table("task", title=f"{second} minus {first}, on the same examples")
    for column in ("n", "first", "second", "difference", "95% interval", "p", "p (Holm)"):
        shown.add_column(column, justify="right")
    for name, one in found["tasks"].items():
        pair = one["paired"]
        values = (f"{one['first']['value']:.3f}", f"{one['second']['value']:.3f}", f"{pair['difference']:+.3f}")
        interval = f"{pair['low']:+.3f} to {pair['high']:+.3f}"
        shown.add_row(
            harmless(name), f"{pair['n']:,}", *values, interval, f"{pair['p_value']:.3g}", f"{one['p_holm']:.3g}"
        )
    return shown


def harness_table(found: Mapping[str, Any]) -> Table:
    """The figures of `harness.run.run_harness`."""
    shown = Table("task", "metric, filter", title=f"lm-evaluation-harness {found['version']}")
    for column in ("n", "value", "95% interval"):
        shown.add_column(column, justify="right")
    for task, figures in found["figures"].items():
        for metric, one in figures.items():
            shown.add_row(harmless(task), harmless(metric), *_cells(one))
    return shown


def _shares(task: Mapping[str, Any]) -> str:
    """The shares of answers that are not 0."""
    found = {name: task[key]["value"] for key, name in SHARES.items() if task[key] is not None}
    return ", ".join(f"{value:.1%} {name}" for name, value in found.items() if value)


def wrong_answers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each of the first `SHOWN` examples of each task with a score below 1."""
    lines = []
    for name, task in found.items():
        wrong = [example for example in task["examples"] if example["score"] < 1]
        lines += [harmless(f"{name}, example {e['id']}: {e['reason']}") for e in wrong[:SHOWN]]
    return lines

"""Shows results of tasks as tables in a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from maverick_jax.errors import harmless

SHOWN = 3
"""Number of wrong answers that are shown per task."""
SHARES = ("unanswered", "malformed", "cut", "loop")


def table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Results of `run_task` by task: the score, and below it scores by other rules and further figures."""
    shown = Table("task", title="tasks")
    for column in ("n", "score", "95% interval", *SHARES):
        shown.add_column(column, justify="right")
    shown.add_column("license")
    for name, task in found.items():
        shares = [_percent(task[key]) for key in SHARES]
        shown.add_row(harmless(name), *_cells(task["score"]), *shares, harmless(task["license"]))
        for part, one in {**task["parts"], **task["figures"]}.items():
            shown.add_row(f"  {harmless(part)}", *_cells(one))
    return shown


def _cells(one: Mapping[str, Any]) -> tuple[str, str, str]:
    sources = f" ({one['clusters']:,} sources)" if one.get("clusters") else ""
    return f"{one['n']:,}{sources}", f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}"


def _percent(one: Mapping[str, Any] | None) -> str:
    return "-" if one is None else f"{one['value']:.1%}"


def wrong_answers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each of the first `SHOWN` examples of each task with a score below 1."""
    lines = []
    for name, task in found.items():
        wrong = [example for example in task["examples"] if example["score"] < 1]
        lines += [harmless(f"{name}, example {e['id']}: {e['reason']}") for e in wrong[:SHOWN]]
    return lines

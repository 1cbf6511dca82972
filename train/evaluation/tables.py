"""Shows the result of an evaluation as text and tables in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from maverick_jax.errors import harmless
from train.evaluation.task_tables import comparison_table, harness_table, table, wrong_answers


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Prints the result of `train.evaluate.evaluate`."""
    console = console or Console()
    for remark in found.get("remarks", ()):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    for name, value in found.items():
        if not isinstance(value, dict | list):
            console.print(f"{name} {value}", markup=False, highlight=False)
    if "comparison" in found:
        console.print(comparison_table(found["comparison"]))
    if "harness" in found:
        console.print(harness_table(found["harness"]))
    if "tasks" in found:
        console.print(table(found["tasks"]))
        for name, task in found["tasks"].items():
            said = harmless(f"{name}: source {task['source']}, license {task['license']}")
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        for line in wrong_answers(found["tasks"]):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if "eval_source_loss" in found:
        columns = [found["eval_source_tokens"], found["eval_source_loss"]]
        console.print(_table("held-out loss by source", ("source", "labels", "nats"), columns))
    for name, part in found.get("loss_by_position", {}).items():
        ends = [f"below {end:,}" for end in part["ends"]]
        columns = [dict(zip(ends, part[key], strict=True)) for key in ("tokens", "loss")]
        console.print(_table(f"held-out loss by position, {harmless(name)}", ("position", "labels", "nats"), columns))
    if "eval_kind_loss" in found:
        columns = [found["eval_kind_tokens"], found["eval_kind_loss"]]
        console.print(_table("labels by kind", ("kind", "labels", "nats"), columns))
    for title, prefix, part in (("teacher forcing", "eval_", found), ("generation", "", found.get("generated", {}))):
        if f"{prefix}decisions" in part:
            _show_decisions(title, {name.removeprefix(prefix): value for name, value in part.items()}, console)


def _show_decisions(how: str, found: dict[str, Any], console: Console) -> None:
    ratios = ("precision", "recall", "f1")
    columns = [found["decisions"], *(found[f"decision_{name}"] for name in ratios)]
    console.print(_table(f"decisions by {how}", ("class", "turns", *ratios), columns))
    parts = [f"{name.replace('_', ' ')} {rate:.1%}" for name, rate in found["call_rates"].items()]
    parts += [f"{found[name]:,} {name.replace('_', ' ')}" for name in ("turns", "turns_too_long") if name in found]
    console.print(", ".join(parts), markup=False, highlight=False, soft_wrap=True)


def _table(title: str, header: Sequence[str], columns: Sequence[dict[str, float]]) -> Table:
    """A table of values by name, with a row for every name in the first column."""
    table = Table(title=title)
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    shown = lambda value: "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    for name in columns[0]:
        table.add_row(name, *(shown(column.get(name)) for column in columns))
    return table

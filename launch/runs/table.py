"""`maverick runs [DIR]`: the runs of a folder, one row each."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.runs.status import RunStatus, State, moment, runs_in, status
from maverick_jax.errors import InputError

STYLES: dict[State, str] = {
    "running": "green", "finished": "blue", "preempted": "yellow", "failed": "bold red", "stopped": "magenta",
}  # fmt: skip
"""Colors of the states."""
PLAIN_WIDTH = 160
"""Columns of a table that is not shown in a terminal."""


def runs(folder: str | pathlib.Path) -> list[RunStatus]:
    """The runs in a folder, by name. Raises InputError if the folder does not exist or holds none."""
    found = runs_in(folder)
    if not found:
        raise InputError(f"{folder}: expected a folder of runs, but none of its folders has config.yaml")
    return [status(path) for path in found]


def as_json(found: Sequence[RunStatus]) -> dict[str, Any]:
    return {"runs": [run.as_json() for run in found]}


def show(found: Sequence[RunStatus], *, terminal: bool, width: int | None = None) -> str:
    """The table as text, with colors for a `terminal`. width: columns; None: the terminal's, or `PLAIN_WIDTH`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("step", "loss", "held out", "tokens/s", "goodput"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("last event", overflow="fold")
    for run in found:
        table.add_row(*map(Text, (run.name,)), state_of(run), *map(Text, figures(run)), Text(last_event(run)))
    out = io.StringIO()
    size = width if terminal else width or PLAIN_WIDTH
    console = Console(file=out, force_terminal=terminal, no_color=not terminal, width=size, highlight=False)
    console.print(table)
    return out.getvalue().rstrip("\n")


def state_of(run: RunStatus) -> Text:
    """The state in its color; of a run that failed or stopped, with the reason."""
    said = Text(run.state, style=STYLES[run.state])
    return said.append(f": {run.reason}", style="default") if run.state in ("failed", "stopped") else said


def figures(run: RunStatus) -> tuple[str, ...]:
    """Step, losses, speed and goodput as text; `-` where there is none."""
    step = f"{run.step:,}" + (f" / {run.steps:,}" if run.steps is not None else "")
    shown = lambda value: f"{value:.4f}" if value is not None and abs(value) < 1e6 else "-"
    speed = f"{run.tokens_per_second:,.0f}" if run.tokens_per_second is not None else "-"
    return (
        step,
        shown(run.loss),
        shown(run.held_out_loss),
        speed,
        f"{run.goodput:.1%}" if run.goodput is not None else "-",
    )


def last_event(run: RunStatus) -> str:
    if not run.events:
        return "-"
    return f"{moment(run.events[-1].time)} {run.events[-1].text}"

"""`maverick watch RUN_DIR`: a live view of a run in the terminal. It reads files only."""

import contextlib
import io
import os
import pathlib
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

import numpy as np
from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.report.run_record import MetricsFile, series
from launch.report.wall_time import WORDS, shares
from launch.runs.status import RunStatus, moment, status
from launch.runs.table import PLAIN_WIDTH, STYLES, figures
from maverick_jax.progress import duration

SECONDS = 2.0
"""Time between two looks at the files."""
EVENTS = 8
"""Newest events that are shown."""
BLOCKS = "▁▂▃▄▅▆▇█"
QUIT = ("q", "Q", "\x03", "\x04")
TIME_COLORS = {
    "init": "magenta", "compile": "bright_magenta", "data_wait": "bright_red", "step": "blue", "save": "green",
    "restore": "bright_green", "evaluation": "yellow", "lost_work": "red", "idle": "bright_black",
}  # fmt: skip


def watch(run_dir: str | pathlib.Path, *, once: bool = False) -> None:
    """Shows the run until `q` or Ctrl-C is pressed. One frame, as text, with `once` or
    if standard output is no terminal. Raises InputError if the directory is not a run."""
    metrics = MetricsFile(pathlib.Path(run_dir) / "metrics.jsonl")
    run = status(run_dir, metrics=metrics)
    if once or not sys.stdout.isatty():
        print(frame(run, terminal=sys.stdout.isatty()))
        return
    live = Live(view(run, Console().width), screen=True, auto_refresh=False)
    with contextlib.suppress(KeyboardInterrupt), _keys() as pressed:
        try:
            live.start(refresh=True)
            while pressed(SECONDS) not in QUIT:
                run = status(run_dir, metrics=metrics)
                live.update(view(run, live.console.width), refresh=True)
        finally:  # after Ctrl-C while it starts too, when `with live` would not stop it
            live.stop()
    print(frame(run, terminal=True))


def frame(run: RunStatus, *, terminal: bool, width: int | None = None) -> str:
    """The view as text, with colors for a `terminal`. width: columns; None: the terminal's, or `PLAIN_WIDTH`."""
    out = io.StringIO()
    size = width if terminal else width or PLAIN_WIDTH
    console = Console(file=out, force_terminal=terminal, no_color=not terminal, width=size, highlight=False)
    console.print(view(run, console.width))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def view(run: RunStatus, width: int) -> Group:
    """What is shown of a run in `width` columns. Names and reasons come from its files, and are never markup."""
    said = Text.assemble((run.name, "bold"), "  ", (run.state, STYLES[run.state]), f": {run.reason}")
    parts = [said, _progress(run, width), Text(), _figures(run), Text()]
    for name, lines, key in (("loss", run.record.without_own_samples, "loss"),
                             ("tokens/s", run.record.training, "tokens_per_second"),
                             ("held out", run.record.evaluations, "eval_loss")):  # fmt: skip
        if line := _curve(name, series(lines, key)[1], width):
            parts.append(line)
    return Group(*parts, *_time(run, width), *_events(run))


def sparkline(values: np.ndarray, width: int) -> str:
    """`values`, finite, as at most `width` blocks from the lowest to the highest: means of consecutive values."""
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    low, span = means.min(), np.ptp(means)
    levels = np.zeros(len(means), int) if span <= 0 else ((means - low) / span * (len(BLOCKS) - 1)).round().astype(int)
    return "".join(BLOCKS[level] for level in levels)


# ---- implementation --------------------------------------------------------------------------------------------------


def _progress(run: RunStatus, width: int) -> Text:
    if not run.steps or run.steps < 0:
        return Text()
    part = min(1.0, run.step / run.steps)
    left = f"  {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
    size = max(10, min(60, width - 30))
    done = round(part * size)
    return Text.assemble(("━" * done, STYLES[run.state]), ("━" * (size - done), "bright_black"), f" {part:.0%}{left}")


def _figures(run: RunStatus) -> Table:
    table = Table.grid(padding=(0, 3))
    names = ("step", "loss", "held out", "tokens/s", "goodput", "checkpoints", "starts")
    saved = ", ".join(f"{step:,}" for step in run.checkpoints[-3:]) or "none"
    values = (*figures(run), saved, str(len(run.record.goodput.attempts)))
    table.add_row(*(Text(name, style="bright_black") for name in names))
    table.add_row(*map(Text, values))
    return table


def _curve(name: str, values: np.ndarray, width: int) -> Text | None:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return None
    form = "{:,.0f}" if values.max() >= 1000 else "{:.4f}"
    ends = f" {form.format(values[0])} to {form.format(values[-1])}"
    blocks = sparkline(values, max(10, min(100, width - 12 - len(ends))))
    return Text.assemble((f"{name:<10}", "bright_black"), (blocks, "cyan"), ends)


def _time(run: RunStatus, width: int) -> Iterator[Text | Columns]:
    """A bar of the classes of wall time, and its legend."""
    found = run.record.goodput
    if not found.wall:
        return
    size, bar, legend, end = max(10, min(60, width)), Text(), [], 0.0
    for name, part in shares(found):
        begin, end = end, end + part
        bar.append("█" * (round(end * size) - round(begin * size)), style=TIME_COLORS[name])
        legend.append(Text.assemble(("■ ", TIME_COLORS[name]), f"{WORDS[name][0]} {part:.0%}"))
    yield from (
        Text(),
        Text.assemble(("wall time ", "bright_black"), duration(found.wall)),
        bar,
        Columns(legend, padding=(0, 3)),
    )


def _events(run: RunStatus) -> Iterator[Text]:
    yield from (Text(), Text("events", style="bright_black"))
    for event in run.events[-EVENTS:]:
        yield Text.assemble((moment(event.time), "bright_black"), f"  {event.text}")
    if not run.events:
        yield Text("none")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits some seconds for a key and returns it; empty if none was pressed. Without a terminal for
    input it waits only."""
    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds) or ""
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    tty.setcbreak(file)  # Ctrl-C stays a signal

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([file], [], [], seconds)
        return os.read(file, 1).decode(errors="replace") if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)

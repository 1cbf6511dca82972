"""`maverick report RUN RUN ...`: several runs on one page: figures, curves over each other, goodput, restarts, and what
differs in config and environment. The runs' files are untrusted, as in `launch.report.page`."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from launch.report.html_parts import escape, json_of, pages_bytes, section, table, time_bar
from launch.report.metrics import PLOTS, Plot
from launch.report.plots import MAX_POINTS, NARROW, STYLE, format_values, svg
from launch.report.run_record import Line, RunRecord, number, read_run, series
from launch.report.setup import changed_at_restarts, machine
from launch.report.style import PAGE
from launch.report.summary import config_values, planned_steps, shown
from launch.report.wall_time import start_rows, summary
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically

FILE = "comparison.html"
MAX_RUNS = 8
MAX_VALUE = 200
"""Most characters of a config value."""
COLORS = ("#2563a9", "#c9600d", "#2f8a57", "#a03a8f", "#8a6d1a", "#c0392c", "#4b5bc4", "#3a8f99")
"""Colors of the runs, which the page replaces by its own (`--run0` and so on)."""
Rows = list[tuple[str, ...]]


def compare(run_dirs: Sequence[str | pathlib.Path]) -> pathlib.Path:
    """Write `comparison.html` into the folder that holds all runs; returns its path.

    Raises InputError if a directory is no run or is named twice, and for more than `MAX_RUNS`.
    """
    folders = [pathlib.Path(run).resolve() for run in run_dirs]
    if len(folders) > MAX_RUNS:
        raise InputError(f"{len(folders)} runs to compare; expected at most {MAX_RUNS}")
    if len(set(folders)) < len(folders):
        twice = next(str(run) for i, run in enumerate(run_dirs) if folders[i] in folders[:i])
        raise InputError(f"{twice}: the run is named twice; expected different runs")
    records = [read_run(run) for run in run_dirs]
    path = pathlib.Path(os.path.commonpath([folder.parent for folder in folders])) / FILE
    write_atomically(path, pages_bytes(comparison_page(records)))
    return path


def comparison_page(records: Sequence[RunRecord]) -> str:
    """The HTML of the comparison."""
    names = names_of(records)
    body = [
        f"<h1>{len(records)} runs compared</h1>",
        _legend(names),
        *section("Figures", table(figure_rows(records, names), header=True)),
        *section("Curves", _curves(records)),
        "<h2>Where the time went</h2>",
        *(_time(record, name) for record, name in zip(records, names, strict=True)),
        *section("What differs in the config", table(config_rows(records, names), header=True)),
        *section("What differs in machine and software", table(environment_rows(records, names), header=True)),
    ]
    return PAGE.format(title=f"{len(records)} runs compared", body="\n".join(filter(None, body)))


# ---- words and numbers -----------------------------------------------------------------------------------------------


def names_of(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names, or their paths if two have the same name."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.directory) for record in records]


def figure_rows(records: Sequence[RunRecord], names: Sequence[str]) -> Rows:
    """Newest and median figures, a row for each run; the first row names the columns."""
    rows: Rows = [("Run", "Step", "Loss", "Held-out loss", "Best", "Tokens/s", "Goodput", "Starts")]
    for record, name in zip(records, names, strict=True):
        total = planned_steps(record)
        step = f"{record.lines[-1]['step']:,}" if record.lines else "0"
        _, held_out = series(record.evaluations, "eval_loss")
        _, rates = series(record.training, "tokens_per_second")
        fraction = record.goodput.fraction
        rows.append((
            name,
            step + (f" of {total:,}" if total is not None else ""),
            _last(record.without_own_samples, "loss"),
            _last(record.evaluations, "eval_loss"),
            shown(float(np.nanmin(held_out))) if np.isfinite(held_out).any() else "-",
            f"{np.nanmedian(rates):,.0f}" if np.isfinite(rates).any() else "-",
            "-" if fraction is None else f"{fraction:.1%}",
            f"{len(record.goodput.attempts)}",
        ))  # fmt: skip
    return rows


def _last(lines: list[Line], key: str) -> str:
    return shown(lines[-1].get(key)) if lines else "-"


def config_rows(records: Sequence[RunRecord], names: Sequence[str]) -> Rows:
    """The keys whose values differ between the runs, except name and directory. The first row names the columns."""
    found = [_flat(config_values(record)) for record in records]
    return _differing(found, names, left_out=("run.name", "run.dir"))


def environment_rows(records: Sequence[RunRecord], names: Sequence[str]) -> Rows:
    """The facts about machine and software that differ between the runs; the first row names the columns."""
    return _differing([dict(machine(json_of(record.environment))) for record in records], names)


def _differing(found: Sequence[dict[str, Any]], names: Sequence[str], left_out: Sequence[str] = ()) -> Rows:
    keys = sorted(set().union(*found) - set(left_out))
    rows = [(key, *(_short(values[key]) if key in values else "-" for values in found)) for key in keys]
    differ = [row for row in rows if len(set(row[1:])) > 1]
    return [("", *names), *differ] if differ else []


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted key -> value that is no mapping."""
    found: dict[str, Any] = {}
    todo = list(values.items())
    while todo:
        key, value = todo.pop()
        if isinstance(value, dict) and value:
            todo += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            found[key] = value
    return found


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _legend(names: Sequence[str]) -> str:
    marks = (f'<span><i style="background:var(--run{i})"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="runs">{"".join(marks)}</p>'


def _time(record: RunRecord, name: str) -> str:
    found = record.goodput
    heading = f"<h3>{escape(name)}</h3>"
    if not found.wall:
        return f"{heading}<p>Not recorded: the run has no goodput.jsonl.</p>"
    changed = table(changed_at_restarts(json_of(record.environment)), header=True)
    return f"{heading}<p>{escape(summary(found))}</p>{time_bar(found)}{table(start_rows(found), header=True)}{changed}"


def _curves(records: Sequence[RunRecord]) -> str:
    figures = "".join(_plot(records, i, plot) for i, plot in enumerate(PLOTS))
    return f'<div class="plots">{figures}</div>' if figures else "<p>Nothing to draw yet.</p>"


def _plot(records: Sequence[RunRecord], index: int, plot: Plot) -> str:
    """The metric of all runs in one figure, with its held-out twin dashed; empty if no run has values for it."""
    curves = [(i, *_points(record.without_own_samples, plot.key), "-") for i, record in enumerate(records)]
    if plot.key == "loss":
        curves += [(i, *_points(record.evaluations, "eval_loss"), "--") for i, record in enumerate(records)]
    curves = [curve for curve in curves if np.isfinite(curve[2]).any()]
    if not curves or (plot.only_if_positive and not max(np.nanmax(values) for _, _, values, _ in curves) > 0):
        return ""
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": f"c{index}-", "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(NARROW, 2.9), layout="constrained")
        axes = figure.add_subplot(ylabel=plot.unit, xlabel="step")
        for run, steps, values, line in curves:
            marker = "o" if line == "--" or len(steps) == 1 else None
            axes.plot(steps, values, line, color=COLORS[run], marker=marker, markersize=3)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        format_values(axes, plot)
        drawn = svg(figure, f"c{index}-", {color: f"--run{i}" for i, color in enumerate(COLORS)})
    about = " ".join(filter(None, [plot.about, "Dashed: held out." if plot.key == "loss" else ""]))
    several = " Mean of the layers." if any(_is_list(record, plot.key) for record in records) else ""
    return (
        f"<figure><figcaption>{escape(plot.title)}<small>{escape(about + several)}</small></figcaption>{drawn}</figure>"
    )


def _is_list(record: RunRecord, key: str) -> bool:
    return any(isinstance(line.get(key), list) for line in record.training)


def _points(lines: list[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` steps and values; of a metric of layers, their mean."""
    of_layers = lambda value: float(np.mean([number(one) for one in value])) if value else None
    flat = [line | {key: of_layers(line[key])} if isinstance(line.get(key), list) else line for line in lines]
    steps, values = series(flat, key)
    width = -(-len(steps) // MAX_POINTS) or 1
    parts = [slice(i, i + width) for i in range(0, len(steps), width)]
    mean = lambda found: float(found[np.isfinite(found)].mean()) if np.isfinite(found).any() else np.nan
    return np.array([steps[part].mean() for part in parts]), np.array([mean(values[part]) for part in parts])

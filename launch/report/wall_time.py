"""Where a run's wall time went, in a report: a bar, a plot over time, tables of the classes and of the starts."""

import datetime
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from launch.report.plots import STYLE, svg
from launch.report.summary import duration
from train.goodput.energy import EnergyConfig
from train.goodput.ledger import CLASSES, Attempt, Goodput, TimeClass, TimeSpan

WORDS: dict[TimeClass, tuple[str, str]] = {
    "init": ("start-up", "imports, data, first weights"),
    "compile": ("compilation", "of the step"),
    "data_wait": ("waiting for data", "devices without a batch"),
    "step": ("updates", "that count"),
    "save": ("saving", "checkpoints; the training waits"),
    "restore": ("restoring", "a checkpoint"),
    "evaluation": ("evaluation", ""),
    "lost_work": ("lost work", "updates that a later start did again"),
    "idle": ("idle", "no process"),
}
COLORS: dict[TimeClass, str] = {
    "init": "#9a86c8", "compile": "#6b4fa5", "data_wait": "#c2457a", "step": "#2a6fb1", "save": "#3f9a64",
    "restore": "#79c396", "evaluation": "#d9870c", "lost_work": "#b3271f", "idle": "#a8a8a9",
}  # fmt: skip
"""Colors of the plot, which the page replaces by its own (`--init` and so on)."""
ENDS = {
    "done": "complete", "Preempted": "stopped as asked", "KeyboardInterrupt": "interrupted", "Watchdog": "hung",
    "PeerFailed": "another process failed", None: "killed, or still running",
}  # fmt: skip
"""Words for the reasons why a process ended; other errors keep their names."""
MAX_BARS, MAX_STARTS = 160, 50
Rows = list[tuple[str, ...]]


def summary(found: Goodput) -> str:
    """The part of the time that went into updates, in a sentence."""
    starts = len(found.attempts)
    began = f" since the first of {starts} starts" if starts > 1 else ""
    updates = f"{duration(found.seconds['step'])} went into updates that count"
    return f"Goodput {found.fraction or 0:.1%}: of {duration(found.wall)}{began}, {updates}."


def shares(found: Goodput) -> list[tuple[TimeClass, float]]:
    """(class, part of the wall time) of each class that took any."""
    return [(name, seconds / found.wall) for name, seconds in found.seconds.items() if seconds > 0]


def class_rows(found: Goodput) -> Rows:
    """The name, meaning, part and length of each class that took any time."""
    return [(*WORDS[name], f"{part:.1%}", duration(part * found.wall)) for name, part in shares(found)]


def start_rows(found: Goodput) -> Rows:
    """A row for each start, if there are several: when, after what pause, which updates, and how it ended."""
    if len(found.attempts) < 2:
        return []
    shown = found.attempts[-MAX_STARTS:]
    header = ("Start", "Idle before", "Length", "Updates", "End")
    return [
        header,
        *((_when(a.began), duration(a.idle_before), duration(a.seconds), _updates(a), _end(a)) for a in shown),
    ]


def _when(time: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "unknown"


def _updates(attempt: Attempt) -> str:
    if attempt.first_step is None:
        return "none"
    return (
        f"{attempt.first_step:,} to {attempt.last_step:,}"
        if attempt.last_step
        else f"none; began {attempt.first_step:,}"
    )


def _end(attempt: Attempt) -> str:
    return ENDS.get(attempt.reason, attempt.reason or "")


def energy(found: Goodput, config: dict[str, Any]) -> str:
    """Energy and CO2 in a sentence; empty if the energy is unknown."""
    section = config.get("logging.energy")
    try:
        factors = EnergyConfig.model_validate(section if isinstance(section, dict) else {})
    except ValueError:
        factors = EnergyConfig()
    line = factors.line(found.kwh)
    if (kwh := line["energy_kwh"]) is None:
        return ""
    emitted = {"location-based": line.get("co2_kg"), "market-based": line.get("co2_kg_market")}
    said = "".join(f", {kg:,.3g} kg CO2e {how}" for how, kg in emitted.items() if kg is not None)
    return f"The devices used {kwh:,.3g} kWh{f' (PUE {factors.pue:g} included)' if factors.pue > 1 else ''}{said}."


def timeline_svg(found: Goodput, width: float = 11.2) -> str:
    """The classes over time, as parts of each of `MAX_BARS` equal lengths; empty for less than a second. width: in
    inches."""
    if found.wall < 1:
        return ""
    edges = np.linspace(0, found.wall, min(MAX_BARS, max(20, len(found.spans) * 4)) + 1)
    parts = binned(found.spans, edges)
    unit, scale = next((u, s) for u, s in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
                       if found.wall >= 2 * s or s == 1)  # fmt: skip
    prefix = f"time{width:.0f}-"
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix, "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, 2.2), layout="constrained")
        axes = figure.add_subplot(xlabel=f"{unit} since the first start")
        below = np.zeros(len(edges) - 1)
        for name in CLASSES:
            heights = parts[name]
            if heights.any():
                axes.bar(edges[:-1] / scale, heights, np.diff(edges) / scale, below, align="edge", color=COLORS[name])
            below += heights
        axes.set_xlim(0, found.wall / scale)
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.grid(visible=False)
        return svg(figure, prefix, {color: f"--{name}" for name, color in COLORS.items()})


def binned(spans: Sequence[TimeSpan], edges: np.ndarray) -> dict[TimeClass, np.ndarray]:
    """The part of each bin [edges[i], edges[i+1]] that is of each class, float64[bins]."""
    found: dict[TimeClass, np.ndarray] = {name: np.zeros(len(edges) - 1) for name in CLASSES}
    for span in spans:
        first = max(0, int(np.searchsorted(edges, span.begin, "right")) - 1)
        last = min(len(edges) - 1, int(np.searchsorted(edges, span.end, "left")))
        inside = np.minimum(edges[first + 1 : last + 1], span.end) - np.maximum(edges[first:last], span.begin)
        found[span.name][first:last] += np.maximum(inside, 0.0)
    return {name: found[name] / np.diff(edges) for name in CLASSES}

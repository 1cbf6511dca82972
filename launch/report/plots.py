"""Plot the curves of a run as SVG text, one figure each. The page adds the titles."""

import dataclasses
import io
import math
import re
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from launch.report.run_record import Line, RunRecord, layer_series, series

MAX_POINTS = 400
"""Most points of a curve; a longer one is plotted as means, with a band from minimum to maximum."""
MAX_LAYERS = 256
LEGEND_LAYERS = 6
BLUE, ORANGE, GRAY = "#2a6fb0", "#d9660c", "#8a8a8a"
STYLE = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "lines.linewidth": 1.3,
    "svg.fonttype": "path",  # text as paths, independent of installed fonts
}


@dataclasses.dataclass(frozen=True)
class Plot:
    """A metric to plot if the run has it."""

    title: str
    key: str
    scale: Literal["plain", "engineering", "percent", "scientific"] = "plain"
    held_out: str | None = None
    """A metric of evaluation lines to plot in the same figure."""
    level: float | None = None
    """A reference value, plotted as a dashed line with the note "dashed: `level_is`"."""
    level_is: str = ""
    only_if_positive: bool = False


@dataclasses.dataclass(frozen=True)
class Drawn:
    title: str
    svg: str
    notes: tuple[str, ...] = ()


PLOTS = (
    Plot("Loss, nats per token", "loss", held_out="eval_loss"),
    Plot("Held-out loss by source, nats", "eval_source_loss"),
    Plot("Loss by kind of token, nats", "kind_loss"),
    Plot("Held-out loss by kind of token, nats", "eval_kind_loss"),
    Plot("Decisions of held-out turns, F1", "eval_decision_f1"),
    Plot("Calls of held-out turns", "eval_call_rates"),
    Plot("Learning rate", "learning_rate", "scientific"),
    Plot("Gradient norm before clipping", "grad_norm"),
    Plot("Tokens per second", "tokens_per_second", "engineering"),
    Plot("Model FLOPs utilization", "mfu", "percent"),
    Plot("Most loaded expert, load over the mean", "router_load_max", level=1.0, level_is="perfectly even"),
    Plot("Router entropy, nats", "router_entropy", level_is="maximum"),
    Plot("Experts without a token", "router_idle", "percent"),
    Plot("Auxiliary balance loss", "router_balance", level=1.0, level_is="perfectly even"),
    Plot("Updates skipped so far", "skipped", only_if_positive=True),
)
_NOT_DRAWN = {"step", "kind_tokens", "tokens", "step_seconds", "time", "compile_seconds", "checkpoint_seconds"}
MAX_OTHERS = 24
MAX_NAMES, MAX_NAME = 20, 40
"""Most curves of a metric with a value per name, and most characters of a name."""


def draw_all(record: RunRecord, num_experts: int | None = None) -> list[Drawn]:
    """Every plot of the run: the known metrics in order, then any other metrics in its lines.

    num_experts: experts of an MoE layer, for the maximum of the router entropy.
    """
    known = [
        dataclasses.replace(plot, level=math.log(num_experts)) if plot.key == "router_entropy" and num_experts else plot
        for plot in PLOTS
    ]
    found = [_draw(plot, record, prefix=f"p{i}-") for i, plot in enumerate([*known, *_others(record)])]
    return [drawn for drawn in found if drawn is not None]


def _others(record: RunRecord) -> list[Plot]:
    """Plots of the metrics in training lines that are not in `PLOTS`, sorted by name."""
    drawn = _NOT_DRAWN | {plot.key for plot in PLOTS}
    keys = sorted({key for line in record.training[-1000:] for key in line} - drawn)
    return [Plot(key, key) for key in keys[:MAX_OTHERS]]


def _draw(plot: Plot, record: RunRecord, prefix: str) -> Drawn | None:
    """The plot as SVG; None if the run has no values for it."""
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": prefix}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.4, 2.7), layout="constrained")
        axes = figure.add_subplot(xlabel="step")
        if any(isinstance(line.get(plot.key), list) for line in record.training):
            drawn = _draw_layers(axes, plot, record.training)
        elif any(isinstance(line.get(plot.key), dict) for line in record.lines):
            drawn = _draw_names(axes, plot, record.lines)
        else:
            drawn = _draw_curve(axes, plot, record)
        if drawn is None:
            return None
        if plot.level is not None:
            axes.axhline(plot.level, color=GRAY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
            drawn.append(f"dashed: {plot.level_is}")
        _format(axes, plot)
        return Drawn(plot.title, _svg(figure, prefix), tuple(drawn))


def _draw_curve(axes: Axes, plot: Plot, record: RunRecord) -> list[str] | None:
    lines = record.without_own_samples if plot.held_out else record.training
    steps, values = series(lines, plot.key)
    eval_steps, eval_values = series(record.evaluations if plot.held_out else [], plot.held_out or "")
    drawn = np.concatenate([values, eval_values])
    if not np.isfinite(drawn).any() or (plot.only_if_positive and not np.nanmax(drawn) > 0):
        return None
    notes = _line(axes, steps, values, BLUE, "training" if plot.held_out else None)
    if left_out := len(record.training) - len(lines):
        notes.append(f"without {left_out} line{'s' * (left_out > 1)} of the model's own samples")
    if np.isfinite(eval_values).any():
        style: dict[str, Any] = {"color": ORANGE, "marker": "o", "markersize": 3, "linewidth": 0.9, "zorder": 1.9}
        axes.plot(eval_steps, eval_values, label="held out", **style)
        axes.legend()
    if lost := int(np.isnan(values).sum()):
        notes.append(f"{lost} value{'s' * (lost > 1)} not finite")
    positive = values[np.isfinite(values)]
    if plot.key == "grad_norm" and positive.min() > 0 and positive.max() / positive.min() > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    return notes


def _draw_layers(axes: Axes, plot: Plot, lines: list[Line]) -> list[str] | None:
    """Plot one curve per MoE layer, from the first (dark) to the last (light)."""
    steps, values = layer_series(lines, plot.key, MAX_LAYERS)
    if not np.isfinite(values).any():
        return None
    layers, notes = values.shape[1], []
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, layers))
    for layer in range(layers):
        label = f"MoE layer {layer}" if layers <= LEGEND_LAYERS else None
        notes = _line(axes, steps, values[:, layer], colors[layer], label, band=layers == 1)
    if 1 < layers <= LEGEND_LAYERS:
        axes.legend(ncols=2)
    elif layers > 1:
        part = ListedColormap(colors)
        bar = axes.figure.colorbar(ScalarMappable(Normalize(-0.5, layers - 0.5), part), ax=axes, pad=0.02)
        bar.set_label("MoE layer")
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    longest = max(len(line[plot.key]) for line in lines if isinstance(line.get(plot.key), list))
    return notes + ([f"the first {MAX_LAYERS} of {longest} layers"] if longest > MAX_LAYERS else [])


def _draw_names(axes: Axes, plot: Plot, lines: list[Line]) -> list[str] | None:
    """Plot one curve per name, for a metric with a value per name; a line may lack some names."""
    points = [(line["step"], line[plot.key]) for line in lines if isinstance(line.get(plot.key), dict)]
    names = sorted({name for _, values in points for name in values})
    notes, colors, drawn = [], matplotlib.colormaps["tab20"], 0
    for i, name in enumerate(names[:MAX_NAMES]):
        steps, values = series([{"step": step, name: values.get(name)} for step, values in points], name)
        if np.isfinite(values).any():
            label = name[:MAX_NAME].replace("$", r"\$")  # otherwise matplotlib would parse a formula
            notes += _line(axes, steps, values, colors(i), label.lstrip("_") or "(no name)", band=False)
            drawn += 1
    if not drawn:
        return None
    notes = sorted(set(notes))
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return notes + ([f"the first {MAX_NAMES} of {len(names)} names"] if len(names) > MAX_NAMES else [])


def _line(axes: Axes, steps, values, color, label: str | None, *, band: bool = True) -> list[str]:
    """Plot one curve; returns a note if its points are means of several lines."""
    marker = "." if len(steps) < 20 else None
    if len(steps) <= MAX_POINTS:
        axes.plot(steps, values, color=color, label=label, marker=marker)
        return []
    means, low, high, middle = _bins(steps, values)
    if band:
        axes.fill_between(middle, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(middle, means, color=color, label=label)
    return [f"means of {math.ceil(len(steps) / MAX_POINTS)} lines" + ("; band: minimum to maximum" if band else "")]


def _bins(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean, minimum and maximum, and mean step, of groups of consecutive points; NaN if no value is finite."""
    width = math.ceil(len(steps) / MAX_POINTS)
    cut = range(0, len(steps), width)
    finite = [part[np.isfinite(part)] for part in (values[i : i + width] for i in cut)]
    reduced = [[f(part) if part.size else np.nan for part in finite] for f in (np.mean, np.min, np.max)]
    return (*map(np.array, reduced), np.array([steps[i : i + width].mean() for i in cut]))


def _format(axes: Axes, plot: Plot) -> None:
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    if plot.only_if_positive:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if plot.scale == "engineering":
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
    elif plot.scale == "percent":
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    elif plot.scale == "scientific":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axes.set_ylim(bottom=0)


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as an `svg` element whose ids start with `prefix`, so that several fit in one page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)

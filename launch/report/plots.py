"""Plot the curves of a run as SVG text, one figure each. The page adds the titles."""

import dataclasses
import io
import itertools
import math
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from launch.report.metrics import LOG_FROM, NOT_DRAWN, PLOTS, SHARE, Curve, Group, Plot
from launch.report.run_record import Line, RunRecord, layer_series, number, series
from launch.report.stages import borders

MAX_POINTS = 400
"""Most points of a curve; a longer one is plotted as means, with a band from minimum to maximum."""
NARROW = 5.4
"""Inches of a plot that is not wide; its text is readable on a phone."""
MAX_LAYERS = 256
LEGEND_LAYERS = 6
MAX_OTHERS = 24
MAX_NAMES, MAX_NAME = 20, 40
"""Most curves of a metric with a value per name, and most characters of a name."""
FLAT = 1e-6
"""A metric is constant if its values differ by at most this part of the largest."""

# The page replaces these colors by its own, of which it has a light and a dark set.
TEXT, FAINT, FIRST, SECOND, GRAY = "#44474c", "#e3e5e8", "#2563a8", "#c9600c", "#85898f"
VARIABLES = {TEXT: "--ink", FAINT: "--grid", FIRST: "--first", SECOND: "--second", GRAY: "--level"}
STYLE = {
    "font.size": 8.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    title: str
    svg: str
    notes: tuple[str, ...]
    plot: Plot
    narrow: str | None = None
    """Of a wide plot: the same for a phone."""

    @property
    def group(self) -> Group:
        return self.plot.group


def draw_all(record: RunRecord, num_experts: int | None = None) -> list[Drawn]:
    """Every plot of the run: the known metrics in order, then any other metrics in its lines. Constant metrics have
    none (`constants`), but for the loss.

    num_experts: experts of an MoE layer, for the maximum of the router entropy.
    """
    known = [
        dataclasses.replace(plot, level=math.log(num_experts)) if plot.key == "router_entropy" and num_experts else plot
        for plot in PLOTS
    ]
    left_out = {plot.key for plot, _ in constants(record)}
    wanted = [plot for plot in [*known, *_others(record)] if plot.key not in left_out]
    found = [_draw(plot, record, prefix=f"p{i}-") for i, plot in enumerate(wanted)]
    return [drawn for drawn in found if drawn is not None]


def constants(record: RunRecord) -> list[tuple[Plot, float]]:
    """The metrics of training lines, except for the loss, that have the same value in all of several lines."""
    found = []
    for plot in [*PLOTS, *_others(record)]:
        _, values = series(record.training, plot.key)
        if plot.key == "loss" or plot.only_if_positive or len(values) < 2 or not np.isfinite(values).all():
            continue
        others = [series(_lines(record, curve), curve.key)[1] for curve in plot.more]
        if np.ptp(values) <= FLAT * np.abs(values).max() and all(np.ptp(x) <= FLAT for x in others if x.size):
            found.append((plot, float(values[-1])))
    return found


def _others(record: RunRecord) -> list[Plot]:
    """Plots of the metrics in training lines that are not in `PLOTS`, sorted by name."""
    drawn = NOT_DRAWN | {plot.key for plot in PLOTS}
    keys = sorted({key for line in record.training[-1000:] for key in line} - drawn)
    return [Plot(key.replace("_", " "), key, group="training") for key in keys[:MAX_OTHERS]]


def _lines(record: RunRecord, curve: Curve | None = None) -> list[Line]:
    """The lines that a curve is made of; None: the main one."""
    return record.evaluations if curve is not None and curve.held_out else record.without_own_samples


def _draw(plot: Plot, record: RunRecord, prefix: str) -> Drawn | None:
    """The plot as SVG; None if the run has no values for it."""
    style: dict[Any, Any] = {"svg.hashsalt": prefix, "svg.fonttype": "path"}  # no installed fonts are needed
    with matplotlib.rc_context(style):
        found = figure_of(plot, record)
        narrow = figure_of(dataclasses.replace(plot, wide=False), record) if found and plot.wide else None
        twin = narrow and svg(narrow[0], f"n{prefix}")
        return found and Drawn(plot.title, svg(found[0], prefix), tuple(found[1]), plot, twin)


def figure_of(plot: Plot, record: RunRecord) -> tuple[Figure, list[str]] | None:
    """The plot as a figure, and its notes; None if the run has no values for it."""
    style: dict[Any, Any] = STYLE
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11.2, 3.4) if plot.wide else (NARROW, 2.9), layout="constrained")
        axes = figure.add_subplot(ylabel=_plain(plot.unit))
        if any(isinstance(line.get(plot.key), list) for line in record.training):
            drawn = _draw_layers(axes, plot, record.training)
        elif any(isinstance(line.get(plot.key), dict) for line in record.lines):
            drawn = _draw_names(axes, plot, record.lines)
        else:
            drawn = _draw_curves(axes, plot, record)
        if drawn is None:
            return None
        if plot.level is not None:
            axes.axhline(plot.level, color=GRAY, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
            drawn.append(f"dashed: {plot.level_is}")
        if ends := borders(record):
            axes.vlines(ends, 0, 1, transform=axes.get_xaxis_transform(), color=GRAY, linestyle=":", linewidth=1)
            drawn.append("dotted: ends of stages")
        format_values(axes, plot)
        _steps_and_tokens(axes, record)
        return figure, drawn


def _draw_curves(axes: Axes, plot: Plot, record: RunRecord) -> list[str] | None:
    steps, values = series(_lines(record) if plot.more else record.training, plot.key)
    others = [(curve, *series(_lines(record, curve), curve.key)) for curve in plot.more]
    others = [(curve, at, found) for curve, at, found in others if np.isfinite(found).any()]
    drawn = np.concatenate([values, *(found for _, _, found in others)])
    if not np.isfinite(drawn).any() or (plot.only_if_positive and not np.nanmax(drawn) > 0):
        return None
    taught = any(curve.color for curve, _, _ in others) and plot.key == "loss"
    name = lambda label: f"student, {label}" if taught and "teacher" not in label else label
    notes = _line(axes, steps, values, FIRST, name(plot.label) if others else None)
    for curve, at, found in others:
        color = (FIRST, SECOND)[curve.color]
        if curve.held_out:
            dots: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 0.9, "linestyle": (0, (4, 2))}
            axes.plot(at, found, color=color, label=name(curve.label), **dots)
        else:
            _line(axes, at, found, color, name(curve.label), band=False)
    if others:
        _legend(axes, 4 if plot.wide else 2)
    if left_out := (len(record.training) - len(_lines(record))) if plot.more else 0:
        notes.append(f"without {left_out} line{'s' * (left_out > 1)} of the model's own samples")
    if lost := int(np.isnan(values).sum()):
        notes.append(f"no estimate in {lost} line{'s' * (lost > 1)}" if plot.key == "doubt" else
                     f"{lost} value{'s' * (lost > 1)} not finite")  # fmt: skip
    finite = drawn[np.isfinite(drawn)]
    if plot.logarithmic and finite.min() > 0 and finite.max() / finite.min() > LOG_FROM:
        _use_logarithmic_axis(axes)
        notes.append("logarithmic axis")
    return notes


def _use_logarithmic_axis(axes: Axes) -> None:
    """Label the vertical axis at 1, 1.5, 2, 3, 5 and 7 times each power of ten, or at the powers if these are many."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high / low < 1e3
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1,)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))


def _legend(axes: Axes, columns: int) -> None:
    """A legend above the axes, where it covers nothing."""
    figure = axes.figure
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=columns, fontsize=8)


def _draw_layers(axes: Axes, plot: Plot, lines: list[Line]) -> list[str] | None:
    """Plot one curve per MoE layer, from the first (dark) to the last (light)."""
    steps, values = layer_series(lines, plot.key, MAX_LAYERS)
    if not np.isfinite(values).any():
        return None
    layers, notes = values.shape[1], []
    colors = matplotlib.colormaps["viridis"](np.linspace(0.25, 0.85, layers))
    for layer in range(layers):
        label = f"MoE layer {layer}" if layers <= LEGEND_LAYERS else None
        notes = _line(axes, steps, values[:, layer], colors[layer], label, band=layers == 1)
    if 1 < layers <= LEGEND_LAYERS:
        _legend(axes, 4)
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
            label = _plain(name[:MAX_NAME])
            notes += _line(axes, steps, values, colors(i), label.lstrip("_") or "(no name)", band=False)
            drawn += 1
    if not drawn:
        return None
    notes = sorted(set(notes))
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return notes + ([f"the first {MAX_NAMES} of {len(names)} names"] if len(names) > MAX_NAMES else [])


def _plain(text: str) -> str:
    """Text that matplotlib does not parse as a formula."""
    return text.replace("$", r"\$")


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


def format_values(axes: Axes, plot: Plot) -> None:
    """Numbers and limits of the vertical axis, as the plot's metric needs them."""
    if plot.only_if_positive:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    if plot.scale == "engineering":
        axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.set_ylim(bottom=0)
    elif plot.scale == "percent":
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.set_ylim(bottom=0)
    elif plot.scale == "scientific":
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.3g}"))
        axes.set_ylim(bottom=0)
    elif plot.unit in (SHARE, "weight per token"):
        low, high = axes.get_ylim()
        axes.set_ylim(min(0, low), max(1.03, high) if plot.unit == SHARE else high)


def _steps_and_tokens(axes: Axes, record: RunRecord) -> None:
    """Label the horizontal axis with steps and, below each, the tokens that the run had trained on by then."""
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    steps, tokens = tokens_by_step(record)
    if not steps.size:
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        return
    text = lambda x, _: f"{x:,.0f}\n{_short(float(np.interp(x, steps, tokens)))}" if x >= 0 else ""
    axes.set_xlabel("step, and tokens trained on")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(text))


def _short(count: float) -> str:
    """A number of tokens, such as 0, 409k or 1.23M."""
    return ticker.EngFormatter(sep="").format_eng(float(f"{count:.3g}"))


def tokens_by_step(record: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Steps float64[n], from 0, and the tokens trained on by then; empty where the lines do not say."""
    points = [(line["step"], count) for line in record.training if 0 <= (count := number(line.get("tokens"))) < 1e18]
    if len(points) < 2 or any(b < a for (_, a), (_, b) in itertools.pairwise(points)):
        return np.zeros(0), np.zeros(0)
    return np.array([0, *(step for step, _ in points)], float), np.array([0, *(n for _, n in points)], float)


def svg(figure: Figure, prefix: str, more: dict[str, str] | None = None) -> str:
    """The figure as an `svg` element whose ids start with `prefix`, so that several fit in one page, and whose colors
    are those of the page. more: further colors, and the page's variables for them."""
    variables = VARIABLES | (more or {})
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return re.sub("|".join(variables), lambda match: f"var({variables[match[0]]})", text)

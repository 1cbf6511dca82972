"""Heatmaps of the load of experts, one per MoE layer: steps from left to right, experts from top to bottom.

The cells of one color are one SVG path, and colors are those of the page, in light and dark. The lines of a run are
untrusted: what is no load is left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from launch.report.html_parts import escape
from launch.report.run_record import Line, number

KEY = "router_load"
"""Load in hundredths of the mean, one list per layer, in some training lines."""
LEVELS = (0.005, 0.25, 0.5, 0.8, 1.25, 2.0, 3.0, 5.0)
"""Where one color ends and the next begins, in multiples of the mean load."""
MAX_COLUMNS, MAX_LAYERS, MAX_CELLS = 48, 64, 150_000
MAX_EXPERTS = 4096
_WORDS = ("no token", "under a quarter", "a quarter to a half", "a half to 0.8", "even: 0.8 to 1.25", "1.25 to 2",
          "2 to 3", "3 to 5", "over 5 times the mean")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Load:
    """float64[columns, layers, experts], in multiples of the mean; a column is the mean of consecutive lines."""

    values: np.ndarray
    steps: tuple[int, int]
    """Of the first and the last line."""
    lines: int
    left_out: int
    """Layers that are not drawn."""


def load_of(lines: Sequence[Line]) -> Load | None:
    """None if no line has a load. Lines whose load has another shape than the newest are left out."""
    found = [(line["step"], _array(line[KEY])) for line in lines if isinstance(line.get(KEY), list)]
    found = [(step, array) for step, array in found if array is not None]
    found = [(step, array) for step, array in found if array.shape == found[-1][1].shape]
    if not found:
        return None
    values = np.stack([array for _, array in found])
    layers, experts = values.shape[1:]
    drawn = min(layers, MAX_LAYERS)
    columns = max(1, min(MAX_COLUMNS, len(found), MAX_CELLS // (drawn * experts)))
    means = [part.mean(axis=0) for part in np.array_split(values[:, :drawn], columns)]
    return Load(np.stack(means), (found[0][0], found[-1][0]), len(found), layers - drawn)


def heatmaps(lines: Sequence[Line]) -> str:
    """The figures, with a legend; empty if no line has a load."""
    load = load_of(lines)
    if load is None:
        return ""
    figures = "".join(_figure(load, layer) for layer in range(load.values.shape[1]))
    columns, lines_each = len(load.values), -(-load.lines // len(load.values))
    said = f"Steps {load.steps[0]:,} to {load.steps[1]:,}, from left to right; experts from 0 at the top."
    said += f" A column is the mean of up to {lines_each} lines." if lines_each > 1 and columns > 1 else ""
    said += f" {load.left_out} more layers are not drawn." if load.left_out else ""
    colors = "".join(f'<span><i style="background:var(--load{i})"></i>{words}</span>' for i, words in enumerate(_WORDS))
    caption = f"<figcaption>Load of each expert<small>{escape(said)}</small></figcaption>"
    return f'<figure class="hero loads">{caption}<p class="runs">{colors}</p><div>{figures}</div></figure>'


def _figure(load: Load, layer: int) -> str:
    values = load.values[:, layer]
    columns, experts = values.shape
    most, idle = int(values[-1].argmax()), int((values[-1] < LEVELS[0]).sum())
    said = f"at the end, expert {most} has {values[-1, most]:.2g} times the mean; {idle} of {experts} have no token"
    title = f"MoE layer {layer}: {said}"
    return (
        f'<figure><svg class="load" viewBox="0 0 {columns} {experts}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}" shape-rendering="crispEdges" style="--experts:{experts}">{_paths(values)}</svg>'
        f"<small>MoE layer {layer}: {escape(said)}</small></figure>"
    )


def _paths(values: np.ndarray) -> str:
    """A path per color, of runs of cells along the steps."""
    level = np.searchsorted(LEVELS, values, side="right").T
    drawn: dict[int, list[str]] = {}
    for row, cells in enumerate(level):
        ends = [*np.flatnonzero(np.diff(cells)) + 1, len(cells)]
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            drawn.setdefault(int(cells[begin]), []).append(f"M{begin} {row}h{end - begin}v1H{begin}z")
    return "".join(f'<path fill="var(--load{i})" d="{"".join(parts)}"/>' for i, parts in sorted(drawn.items()))


def _array(value: list) -> np.ndarray | None:
    """float64[layers, experts] in multiples of the mean; None unless it is a load."""
    if not value or not all(isinstance(row, list) and len(row) == len(value[0]) for row in value):
        return None
    if not value[0] or len(value[0]) > MAX_EXPERTS or len(value) > 4096:
        return None
    found = np.array([[number(x) for x in row] for row in value], np.float64) / 100
    return found if np.isfinite(found).all() and (found >= 0).all() else None

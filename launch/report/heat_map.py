"""A heat map of scores by length of the context and depth in it (`data.graders.grids.Grid.as_json`)."""

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from launch.report.plots import GRAY, STYLE, svg

COLORS = LinearSegmentedColormap.from_list("retrieval", ["#7a1f1f", "#c9600c", "#e9c46a", "#8ab17d", "#1f6f5c"])
"""From nothing found to all found."""
MAX_CELLS = 24
"""Most lengths, and most depths, that are drawn."""


def heat_map(grid: Mapping[str, Any], prefix: str, width: float) -> str:
    """The map as SVG, so many inches wide."""
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix, "svg.fonttype": "path", "axes.grid": False}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, 1.0 + 0.34 * min(len(grid["depths"]), MAX_CELLS)), layout="constrained")
        draw_heat_map(drawn.add_subplot(), grid)
        return svg(drawn, prefix)


def draw_heat_map(axes: Axes, grid: Mapping[str, Any]) -> None:
    """Draws lengths from left to right and depths from the top down, with the share that was found in each cell."""
    lengths, depths = grid["lengths"][:MAX_CELLS], grid["depths"][:MAX_CELLS]
    for x, row in enumerate(grid["cells"][:MAX_CELLS]):
        for y, cell in enumerate(row[:MAX_CELLS]):
            if cell is not None:
                share = cell["value"]
                color = COLORS(min(1.0, max(0.0, share)))
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, linewidth=0))
                ink = "#000000" if 0.3 < share < 0.85 else "#ffffff"
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.set_ylim(len(depths) - 0.5, -0.5)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_color(GRAY)

"""`evaluation.html`: results of `maverick eval` on tasks as one self-contained page without scripts. What a model wrote
is untrusted: text is escaped."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from launch.report.heat_map import heat_map
from launch.report.html_parts import by_width, escape, pages_bytes, section, table
from launch.report.plots import FIRST, GRAY, NARROW, STYLE, svg
from launch.report.style import PAGE
from maverick_jax.files import write_atomically

FILE = "evaluation.html"
SHARES = {"unanswered": "no answer", "malformed": "malformed", "cut": "cut", "loop": "loop"}
MAX_FIGURES, MAX_EXAMPLES, MAX_TEXT = 60, 30, 1_500
"""Most figures of a task in a plot, most examples on the page, and most characters of an answer."""
Named = tuple[str, Mapping[str, Any]]


def write_page(folder: str | pathlib.Path, found: Mapping[str, Any]) -> pathlib.Path:
    """Writes the page of what `launch.evaluation.run` found; returns its path."""
    path = pathlib.Path(folder).expanduser() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pages_bytes(page(found)))
    return path


def page(found: Mapping[str, Any]) -> str:
    """The HTML of the page."""
    if "comparison" in found:
        title, body = "Two models compared", _comparison(found["comparison"])
    else:
        title = f"Evaluation of {found.get('checkpoint', 'a model')}"
        body = [*_tasks(found.get("tasks", {})), *_harness(found.get("harness"))]
    return PAGE.format(title=escape(title), body="\n".join([f"<h1>{escape(title)}</h1>", *body]))


# ---- one model -------------------------------------------------------------------------------------------------------


def _tasks(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not tasks:
        return []
    lead = "Lines are 95% intervals: Wilson's of shares, Student's of other means, by source where examples share one."
    scores = [(name, task["score"]) for name, task in tasks.items()]
    found = [f'<p class="lead">{escape(lead)}</p>', _plotted("Scores", scores, "s", (0.0, 1.0))]
    found += section("Tasks", table(_rows(tasks), header=True))
    for i, (name, task) in enumerate(tasks.items()):
        found.append(f"<h2>{escape(name)}</h2>")
        about = f"{task['n']:,} examples. Source: {task['source']}; license: {task['license']}."
        found.append(f'<p class="lead">{escape(about)}</p>')
        parts = list({**task["parts"], **task["figures"]}.items())
        if parts:
            found.append(_plotted("By other rules, and parts of the task", parts[:MAX_FIGURES], f"t{i}-"))
        if grid := task.get("grid"):
            found.append(_grid(grid, f"g{i}-"))
        found.append(_examples(task["examples"]))
    return found


def _grid(grid: Mapping[str, Any], prefix: str) -> str:
    sizes = (("b", NARROW * 1.5), ("n", NARROW * 0.75))
    broad, narrow = (heat_map(grid, f"{prefix}{width}-", size) for width, size in sizes)
    cells = [("Tokens", "Depth", "n", "Score", "95% interval")]
    cells += [(f"{length:,}", f"{depth:.2f}", *_cells(one))
              for length, row in zip(grid["lengths"], grid["cells"], strict=True)
              for depth, one in zip(grid["depths"], row, strict=True) if one is not None]  # fmt: skip
    caption = "<figcaption>Found, in percent, by length and depth</figcaption>"
    shown = f'<figure class="hero">{caption}{by_width(broad, narrow)}</figure>'
    return f"{shown}<details><summary>All cells</summary>{table(cells, header=True)}</details>"


def _rows(tasks: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = [("Task", "n", "Score", "95% interval", *(title.capitalize() for title in SHARES.values()))]
    for name, task in tasks.items():
        shares = ["-" if task[key] is None else f"{task[key]['value']:.1%}" for key in SHARES]
        rows.append((name, *_cells(task["score"]), *shares))
        rows += [(f"\u2003{part}", *_cells(one), *[""] * len(SHARES)) for part, one in task["parts"].items()]
    return rows


def _cells(one: Mapping[str, Any]) -> tuple[str, str, str]:
    clusters = one.get("clusters")
    sources = f" ({clusters:,} source{'s' if clusters > 1 else ''})" if clusters else ""
    return f"{one['n']:,}{sources}", f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}"


def _examples(examples: Sequence[Mapping[str, Any]]) -> str:
    wrong = [example for example in examples if example["score"] < 1]
    right = [example for example in examples if example["score"] >= 1]
    chosen = [*wrong[: MAX_EXAMPLES - 5], *right[:5]]
    rows = [("Example", "Score", "What the model wrote", "Reason")]
    rows += [(e["id"], f"{e['score']:.2f}", _short(e.get("text", "")), _short(e.get("reason", ""))) for e in chosen]
    said = f"{len(chosen):,} of {len(examples):,} examples, wrong ones first; evaluation.json has all"
    return f"<details><summary>{escape(said)}</summary>{table(rows, header=True)}</details>"


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} [...]"


def _harness(found: Mapping[str, Any] | None) -> list[str]:
    if not found:
        return []
    rows = [("Task", "Metric, filter", "n", "Value", "95% interval")]
    rows += [(task, metric, *_cells(one)) for task, by in found["figures"].items() for metric, one in by.items()]
    about = f"lm-evaluation-harness {found['version']}; begin token: {found['begin_token']}."
    return [*section("Tasks of lm-evaluation-harness", table(rows, header=True)), f"<p>{escape(about)}</p>"]


# ---- two models ------------------------------------------------------------------------------------------------------


def _comparison(found: Mapping[str, Any]) -> list[str]:
    first, second = found["models"]
    rows = [("Task", "n", "First", "Second", "Difference", "95% interval", "p", "p (Holm)", "First better", "Second")]
    for name, one in found["tasks"].items():
        pair = one["paired"]
        rows.append((
            name, f"{pair['n']:,}", f"{one['first']['value']:.3f}", f"{one['second']['value']:.3f}",
            f"{pair['difference']:+.3f}", f"{pair['low']:+.3f} to {pair['high']:+.3f}",
            f"{pair['p_value']:.3g} ({pair['test']})", f"{one['p_holm']:.3g}", f"{pair['first_only']:,}",
            f"{pair['second_only']:,}",
        ))  # fmt: skip
    pairs = [(name, one["paired"] | {"value": one["paired"]["difference"]}) for name, one in found["tasks"].items()]
    unseen = [name for name, one in found["tasks"].items() if one["p_holm"] >= 0.05]
    said = f"No difference can be told at 5% on: {', '.join(unseen)}." if unseen else ""
    return [
        table([("First", first), ("Second", second)]),
        f'<p class="note">{escape(said)}</p>' if said else "",
        _plotted("Difference, second minus first", pairs, "d", zero=True),
        *section("Same examples, both models", table(rows, header=True)),
    ]


# ---- plots -----------------------------------------------------------------------------------------------------------


def _plotted(
    title: str, figures: Sequence[Named], prefix: str, limits: tuple[float, float] | None = None, zero: bool = False
) -> str:
    """A dot with its interval for each figure, below each other."""
    broad, narrow = (
        _dots(figures, f"{prefix}{width}-", limits, zero, size)
        for width, size in (("b", NARROW * 1.5), ("n", NARROW * 0.75))
    )
    return f'<figure class="hero"><figcaption>{escape(title)}</figcaption>{by_width(broad, narrow)}</figure>'


def _dots(figures: Sequence[Named], prefix: str, limits: tuple[float, float] | None, zero: bool, width: float) -> str:
    """The plot, so many inches wide."""
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": prefix, "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, 0.8 + 0.28 * len(figures)), layout="constrained")
        axes = drawn.add_subplot()
        for place, (_, one) in enumerate(figures):
            low, high = _bounded(one)
            axes.plot([low, high], [place, place], color=GRAY, linewidth=2, solid_capstyle="butt")
            axes.plot([one["value"]], [place], "o", color=FIRST, markersize=5)
        names = [(name if len(name) <= 40 else f"{name[:39]}\u2026").replace("$", r"\$") for name, _ in figures]
        axes.set_yticks(range(len(figures)), names)
        axes.set_ylim(len(figures) - 0.5, -0.5)
        if zero:
            axes.axvline(0, color=GRAY, linewidth=0.8)
        if limits:
            axes.set_xlim(limits[0] - 0.02, limits[1] + 0.02)
        return svg(drawn, prefix)


def _bounded(one: Mapping[str, Any]) -> tuple[float, float]:
    """The interval's ends; of one without an end, the value."""
    finite = lambda x: x if abs(x) < float("inf") else one["value"]
    return finite(one["low"]), finite(one["high"])

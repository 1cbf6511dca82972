"""`maverick report RUN_DIR`: one HTML file about a run, complete in itself: no scripts, nothing fetched.

Everything in it comes from the run's files, which are data: text is escaped, numbers are drawn.
"""

import html
import io
import json
import math
import pathlib
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from maverick_jax.errors import InputError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td { padding: .15em 1.5em .15em 0; vertical-align: top; }
td + td { font-variant-numeric: tabular-nums; } pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
figure { display: inline-block; margin: 0 1em 1em 0; } h1, h2 { font-weight: 600; }
"""
PLOTS = {
    "Loss (nats per token)": ("loss", "eval_loss"),
    "Gradient norm": ("grad_norm",),
    "Learning rate": ("learning_rate",),
    "Tokens per second": ("tokens_per_second",),
    "Fraction of peak FLOP/s": ("mfu",),
    "Heaviest expert over the mean": ("router_load_max",),
    "Idle experts": ("router_idle",),
}
"""Title -> keys of metrics.jsonl drawn into one plot; a key whose values are lists is drawn once per MoE layer."""

Line = dict[str, Any]


def report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes `report.html` into a run's directory, from what the run has written so far, and returns its path.

    Raises InputError where there is no run with at least one line of metrics.
    """
    directory = pathlib.Path(run_dir)
    lines = read_metrics(directory / "metrics.jsonl")
    figures = [f"<figure>{_draw(title, lines, keys)}</figure>" for title, keys in PLOTS.items() if _has(lines, keys)]
    config, environment = (_text(directory / name) for name in ("config.yaml", "environment.json"))
    body = [
        f"<h1>{html.escape(directory.resolve().name)}</h1>",
        _table(summary(lines)),
        "<h2>Curves</h2>",
        *figures,
        f"<h2>Config</h2><pre>{html.escape(config)}</pre>",
        f"<h2>Environment</h2><pre>{html.escape(environment)}</pre>",
    ]
    title = html.escape(f"{directory.resolve().name}: maverick-jax run")
    page = f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>{STYLE}</style>\n" + "\n".join(body)
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_metrics(path: pathlib.Path) -> list[Line]:
    """The lines of a metrics file. A last line that is being written is left out. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a run directory with its metrics")
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not text.endswith("\n"):
            break
        try:
            line = json.loads(text)
            lines.append({**line, "step": int(line["step"])})
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}:{number}: not a JSON object with a step") from None
    if not lines:
        raise InputError(f"{path}: holds no metrics yet")
    return lines


def summary(lines: list[Line]) -> dict[str, str]:
    """What a reader wants to know first, by name, in words."""
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    found = {"steps": f"{lines[-1]['step']:,}"}
    if training:
        last = training[-1]
        found["tokens"] = f"{last['tokens']:,}"
        found["training loss"] = f"{float(training[0]['loss']):.4f} at step {training[0]['step']:,}, "
        found["training loss"] += f"{float(last['loss']):.4f} at the end"
        rates = sorted(float(line["tokens_per_second"]) for line in training)
        found["tokens per second"] = f"{rates[len(rates) // 2]:,.0f} (median)"
        found["updates refused"] = f"{last.get('skipped', 0)}"
    if evaluations:
        best = min(evaluations, key=lambda line: float(line["eval_loss"]))
        found["held-out loss"] = f"{float(evaluations[-1]['eval_loss']):.4f} at the end, "
        found["held-out loss"] += f"{float(best['eval_loss']):.4f} at best (step {best['step']:,})"
    steps, evaluating = seconds(lines)
    if steps + evaluating > 0:
        found["goodput"] = f"{steps / (steps + evaluating):.1%} of {_duration(steps + evaluating)} in updates, "
        found["goodput"] += "the rest in evaluations; start-up, lost updates and pauses are not recorded"
    return found


def seconds(lines: list[Line]) -> tuple[float, float]:
    """Recorded seconds in updates and in evaluations. A training line stands for all updates since the one before."""
    updates, before = 0.0, 0
    for line in lines:
        if "step_seconds" in line:
            updates += (line["step"] - before) * float(line["step_seconds"])
            before = line["step"]
    return updates, sum(float(line.get("eval_seconds", 0)) for line in lines)


def _duration(length: float) -> str:
    hours, rest = divmod(round(length), 3600)
    return f"{hours:,} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _has(lines: list[Line], keys: tuple[str, ...]) -> bool:
    return any(line.get(key) is not None for line in lines for key in keys)


def _draw(title: str, lines: list[Line], keys: tuple[str, ...]) -> str:
    """A plot over steps as SVG text. What is not finite is a gap."""
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel="step")
        for key in keys:
            points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            for layer, series in enumerate(_columns([value for _, value in points])):
                name = f"layer {layer}" if points and isinstance(points[0][1], list) else key
                axes.plot(
                    [step for step, _ in points], series, label=name, linewidth=1.2, marker="." * (len(points) < 30)
                )
        axes.grid(alpha=0.3)
        if len(axes.lines) in range(2, 9):
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue().partition("?>")[2].partition(">")[2]  # without the XML prolog and its doctype


def _columns(values: list[Any]) -> list[list[float]]:
    """One series of numbers, or one per element where the values are lists."""
    rows = [value if isinstance(value, list) else [value] for value in values]
    width = min((len(row) for row in rows), default=0)
    return [[_finite(row[i]) for row in rows] for i in range(width)]


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.nan


def _table(rows: dict[str, str]) -> str:
    cells = (f"<tr><td>{html.escape(name)}<td>{html.escape(text)}" for name, text in rows.items())
    return f"<table>{''.join(cells)}</table>"


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else f"{path.name} is missing"

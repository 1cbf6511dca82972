"""`maverick report RUN_DIR`: write a report of a run as one self-contained HTML file without scripts.

All content comes from the run's files, which are untrusted data: text is escaped, and numbers are plotted.
"""

import html
import json
import pathlib
from typing import Any

import numpy as np

from launch.report.plots import draw_all
from launch.report.run_record import RunRecord, TextFile, number, read_run, series, wall_time
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.settings import strict_yaml

# The content security policy is a second defense; escaping already prevents scripts.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; color: #222;
       background: #fff; }}
h1 {{ font-size: 1.7rem; margin: 0; }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .7rem; }} h1, h2 {{ font-weight: 600; }}
.lead {{ margin: .2rem 0 1.2rem; color: #555; }}
.note {{ background: #fff6e5; border-left: 4px solid #d9860c; padding: .4rem .8rem; margin: .5rem 0; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .7rem; margin: 0; }}
.tiles div {{ background: #f6f7f9; border-radius: 6px; padding: .55rem .8rem; }}
dt {{ color: #666; font-size: .8rem; }} dd {{ margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }}
dd small {{ display: block; font-size: .75rem; color: #666; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; font-size: .9rem; }}
figcaption small {{ font-weight: 400; color: #666; }} svg {{ width: 100%; height: auto; }}
.bar {{ display: flex; height: 1.4rem; border-radius: 4px; overflow: hidden; background: #eee; }}
table {{ border-collapse: collapse; margin: .6rem 0; }}
td {{ padding: .1rem 1.5rem .1rem 0; vertical-align: top; overflow-wrap: anywhere;
     font-variant-numeric: tabular-nums; }}
td:first-child {{ color: #555; white-space: nowrap; }}
td i {{ display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .5rem; }}
pre {{ background: #f6f7f9; border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem;
      line-height: 1.45; }}
.sample {{ white-space: pre-wrap; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
COLORS = {
    "updates": "#2a6fb0",
    "evaluation": "#d9860c",
    "compilation": "#7a5ea8",
    "checkpoints": "#3f9a63",
    "other": "#a8a8a8",
}
MAX_SAMPLE = 20_000
"""Most characters of the sample that are shown."""


def report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Write `report.html` into a run's directory, from the files that the run has written so far; returns its path.

    A run without metrics gets a report too. Raises InputError if the directory is not a run.
    """
    record = read_run(run_dir)
    path = record.directory / "report.html"
    # A JSON string may hold a surrogate, which UTF-8 cannot encode.
    write_atomically(path, page(record).encode("utf-8", errors="xmlcharrefreplace"))
    return path


def page(record: RunRecord) -> str:
    """The HTML of the report."""
    config, environment = _config(record.config), _json(record.environment)
    experts = config.get("model.num_local_experts")
    drawn = draw_all(record, experts if type(experts) is int and experts > 1 else None)
    figures = [
        f"<figure><figcaption>{_escape(plot.title)} <small>{_escape('; '.join(plot.notes))}</small></figcaption>"
        f"{plot.svg}</figure>"
        for plot in drawn
    ]
    body = [
        f"<h1>{_escape(record.name)}</h1>",
        f'<p class="lead">{_escape(headline(record, config))}</p>',
        *(f'<p class="note">{_escape(note)}</p>' for note in notes(record)),
        _tiles(facts(record, environment)),
        "<h2>Where the time went</h2>",
        _time(record),
        "<h2>Curves</h2>",
        f'<div class="plots">{"".join(figures)}</div>' if figures else "<p>Nothing to draw yet.</p>",
        *_sample(record.sample),
        "<h2>Environment</h2>",
        _environment(record.environment, environment),
        "<h2>Config</h2>",
        _file(record.config, "config.yaml"),
    ]
    return PAGE.format(title=_escape(f"{record.name}: maverick-jax run"), body="\n".join(body))


# ---- text ------------------------------------------------------------------------------------------------------------


def headline(record: RunRecord, config: dict[str, Any]) -> str:
    """The run in one line: step, loss and speed."""
    total = config.get("run.steps")
    if not record.lines:
        return "No metrics yet" + (f"; {total:,} steps planned" if type(total) is int else "")
    parts = [f"Step {record.lines[-1]['step']:,}" + (f" of {total:,}" if type(total) is int else "")]
    for name, lines, key in (
        ("loss", record.without_own_samples, "loss"),
        ("held-out loss", record.evaluations, "eval_loss"),
    ):
        if lines:
            parts.append(f"{name} {_number(lines[-1].get(key))}")
    _, rates = series(record.training, "tokens_per_second")
    if np.isfinite(rates).any():
        parts.append(f"{np.nanmedian(rates):,.0f} tokens/s")
    return ", ".join(parts)


def notes(record: RunRecord) -> list[str]:
    """Warnings for the top of the page."""
    found = []
    if record.unreadable:
        found.append(f"metrics.jsonl: {record.unreadable} line(s) could not be read and are not in this report")
    _, refused = series(record.training, "skipped")
    if np.isfinite(refused).any() and np.nanmax(refused) > 0:
        found.append(
            f"{np.nanmax(refused):,.0f} update(s) were skipped because the loss or the gradients were not finite"
        )
    _, losses = series(record.training, "loss")
    if np.isnan(losses).any():
        found.append(f"the loss of {np.isnan(losses).sum()} line(s) is not finite")
    return found


def facts(record: RunRecord, environment: Any) -> dict[str, tuple[str, str]]:
    """Name -> (value, remark) of the key figures."""
    found: dict[str, tuple[str, str]] = {}
    if record.without_own_samples:
        first, last = record.without_own_samples[0], record.without_own_samples[-1]
        start = f"from {_number(first.get('loss'))} at step {first['step']:,}"
        found["Training loss"] = (_number(last.get("loss")), start)
    if record.training:
        last = record.training[-1]
        found["Tokens"] = (_number(last.get("tokens")), "")
        found["Updates skipped"] = (_number(last.get("skipped")), "")
    steps, losses = series(record.evaluations, "eval_loss")
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        found["Held-out loss"] = (_number(losses[-1]), f"best {losses[best]:.4f} at step {steps[best]:,}")
    for name, key, form in (("Tokens per second", "tokens_per_second", "{:,.0f}"), ("MFU", "mfu", "{:.1%}")):
        _, values = series(record.training, key)
        if np.isfinite(values).any():
            found[name] = (form.format(np.nanmedian(values)), "median")
    if isinstance(environment, dict) and "parameters" in environment:
        active = _number(environment.get("active_parameters"))
        found["Parameters"] = (_number(environment["parameters"]), f"{active} active")
    return found


def _number(value: Any) -> str:
    """A metric as text: counts in full, other numbers with four decimals."""
    if value is None:
        return "unknown"
    if type(value) is int:
        return f"{value:,}" if abs(value) < 10**18 else "out of range"
    found = number(value)
    return f"{found:.4f}" if abs(found) < 1e6 else f"{found:.3g}"  # also "nan" and "inf"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _escape(text: Any) -> str:
    return html.escape(str(text))


def _tiles(found: dict[str, tuple[str, str]]) -> str:
    tiles = (
        f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}<small>{_escape(remark)}</small></dd></div>"
        for name, (value, remark) in found.items()
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _time(record: RunRecord) -> str:
    """Goodput: a bar with a legend, and a remark on time that is not included."""
    seconds = wall_time(record)
    total = sum(seconds.values())
    if not total:
        return "<p>No times recorded yet.</p>"
    bars = (f'<span style="width:{s / total:.3%};background:{COLORS[name]}"></span>' for name, s in seconds.items())
    rows = (
        f'<tr><td><i style="background:{COLORS[name]}"></i>{name}</td>'
        f"<td>{s / total:.1%}</td><td>{_duration(s)}</td></tr>"
        for name, s in seconds.items()
    )
    remark = "" if "other" in seconds else " Start-up and other times that metrics.jsonl does not record are excluded."
    summary = f"{seconds.get('updates', 0) / total:.1%} of {_duration(total)} went into updates.{remark}"
    return f'<div class="bar">{"".join(bars)}</div><table>{"".join(rows)}</table><p>{summary}</p>'


def _sample(sample: TextFile) -> list[str]:
    if sample.content is None:
        return []
    cut = "\n[...]" if sample.cut or len(sample.content) > MAX_SAMPLE else ""
    return ["<h2>Sample</h2>", f'<pre class="sample">{_escape(sample.content[:MAX_SAMPLE] + cut)}</pre>']


def _environment(text: TextFile, found: Any) -> str:
    if not isinstance(found, dict):
        return _file(text, "environment.json")
    rows = (f"<tr><td>{_escape(key)}</td><td>{_escape(value)}</td></tr>" for key, value in _flat(found))
    return f"<table>{''.join(rows)}</table>"


def _flat(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in found.items():
        if isinstance(value, dict) and not prefix.count(" "):
            rows += _flat(value, f"{prefix}{key} ")
        elif type(value) in (int, float):
            rows.append((prefix + key, f"{value:,}"))
        else:
            rows.append((prefix + key, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _file(text: TextFile, name: str) -> str:
    if text.content is None:
        return f"<p>{name} is missing.</p>"
    return f"<pre>{_escape(text.content)}{_escape('[...]') if text.cut else ''}</pre>"


# ---- parsing ---------------------------------------------------------------------------------------------------------


def _config(text: TextFile) -> dict[str, Any]:
    """Dotted key -> value of the config; empty if it cannot be parsed (the page shows its text anyway)."""
    try:
        data = strict_yaml.parse(text.content or "", "config.yaml").data
    except InputError:
        return {}
    sections = data.items() if isinstance(data, dict) else ()
    return {
        f"{name}.{key}": value for name, inner in sections if isinstance(inner, dict) for key, value in inner.items()
    }


def _json(text: TextFile) -> Any:
    try:
        found = json.loads(text.content or "null")
        json.dumps(found)  # check that it is not nested too deeply
        return found
    except (ValueError, RecursionError):
        return None

"""`maverick report RUN_DIR`: write a report of a run as one self-contained HTML file without scripts.

All content comes from the run's files, which are untrusted data: text is escaped, and numbers are plotted.
"""

import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from launch.report.metrics import FOLDED, GROUPS
from launch.report.plots import Drawn, draw_all
from launch.report.run_record import RunRecord, TextFile, read_run
from launch.report.setup import machine, settings, starts
from launch.report.style import PAGE
from launch.report.summary import config_values, constant_rows, facts, headline, models, notes, verdict
from launch.report.wall_time import class_rows, energy, shares, start_rows, summary, timeline_svg
from maverick_jax.files import write_atomically

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
    config, environment = config_values(record), _json(record.environment)
    experts = config.get("model.num_local_experts")
    drawn = draw_all(record, experts if type(experts) is int and experts > 1 else None)
    said = verdict(record)
    began = starts(environment)
    body = [
        f"<h1>{_escape(record.name)}</h1>",
        f'<p class="lead">{_escape(headline(record, config))}</p>',
        f'<div class="verdict">{"".join(f"<p>{_escape(text)}</p>" for text in said)}</div>' if said else "",
        *(f'<p class="note">{_escape(note)}</p>' for note in notes(record)),
        _tiles(facts(record, environment)),
        *_section("Teacher and student", _table(models(record, config, environment), header=True)),
        *_plots(drawn),
        *_sample(record.sample),
        *_section("Constant during the run", _table(constant_rows(record))),
        "<h2>Where the time went</h2>",
        _time(record, config),
        "<h2>How it was made</h2>",
        _table([*began, *settings(config)]) or "<p>Not recorded.</p>",
        "<h2>Machine and software</h2>",
        _table(machine(environment)) or _file(record.environment, "environment.json"),
        f"<details><summary>The whole config</summary>{_file(record.config, 'config.yaml')}</details>",
    ]
    return PAGE.format(title=_escape(f"{record.name}: maverick-jax run"), body="\n".join(filter(None, body)))


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _escape(text: Any) -> str:
    return html.escape(str(text))


def _section(title: str, content: str) -> list[str]:
    return [f"<h2>{title}</h2>", content] if content else []


def _plots(drawn: list[Drawn]) -> list[str]:
    if not drawn:
        return ["<h2>Results</h2>", "<p>Nothing to draw yet.</p>"]
    found = []
    for group, title in GROUPS.items():
        figures = "".join(_figure(plot) for plot in drawn if plot.group == group)
        if not figures:
            continue
        plots = f'<div class="plots">{figures}</div>'
        found.append(
            f"<details><summary>{title}</summary>{plots}</details>" if group in FOLDED else f"<h2>{title}</h2>{plots}"
        )
    return found


def _figure(drawn: Drawn) -> str:
    remarks = " ".join(f"<small>{_escape(text)}</small>" for text in (drawn.plot.about, "; ".join(drawn.notes)) if text)
    kind = ' class="hero"' if drawn.plot.wide else ""
    return f"<figure{kind}><figcaption>{_escape(drawn.title)}{remarks}</figcaption>{drawn.svg}</figure>"


def _tiles(found: dict[str, tuple[str, str]]) -> str:
    tiles = (
        f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}<small>{_escape(remark)}</small></dd></div>"
        for name, (value, remark) in found.items()
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _table(rows: Sequence[Iterable[str]], *, header: bool = False) -> str:
    """A table of text; with `header`, its first row names the columns. Empty without rows."""
    if not rows:
        return ""
    line = lambda cells, tag: "<tr>" + "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    lines = [line(row, "th" if header and not i else "td") for i, row in enumerate(rows)]
    kind = ' class="ruled"' if header else ""
    return f'<div class="wide"><table{kind}>{"".join(lines)}</table></div>'


def _time(record: RunRecord, config: dict[str, Any]) -> str:
    """Goodput: a bar, the classes over time with a legend, and the starts."""
    found = record.goodput
    if not found.wall:
        return "<p>Not recorded: the run has no goodput.jsonl.</p>"
    bars = (f'<span style="width:{part:.3%};background:var(--{name})"></span>' for name, part in shares(found))
    colors = (f'<i style="background:var(--{name})"></i>' for name, _ in shares(found))
    rows = "".join(
        f"<tr><td>{color}{_escape(name)}</td><td>{_escape(part)}</td><td>{_escape(length)}</td>"
        f"<td>{_escape(about)}</td></tr>"
        for color, (name, about, part, length) in zip(colors, class_rows(found), strict=True)
    )
    remarks = "".join(f"<p>{_escape(text)}</p>" for text in (summary(found), energy(found, config)) if text)
    plot = timeline_svg(found)
    figure = f'<figure class="hero"><figcaption>Over time</figcaption>{plot}</figure>' if plot else ""
    table = f'<div class="wide"><table>{rows}</table></div>'
    return f'{remarks}<div class="bar">{"".join(bars)}</div>{table}{figure}{_table(start_rows(found), header=True)}'


def _sample(sample: TextFile) -> list[str]:
    if sample.content is None:
        return []
    cut = "\n[...]" if sample.cut or len(sample.content) > MAX_SAMPLE else ""
    text = _escape(sample.content[:MAX_SAMPLE] + cut)
    return ["<h2>What the model writes</h2>", f'<pre class="sample">{text}</pre>']


def _file(text: TextFile, name: str) -> str:
    if text.content is None:
        return f"<p>{name} is missing.</p>"
    return f"<pre>{_escape(text.content)}{_escape('[...]') if text.cut else ''}</pre>"


# ---- parsing ---------------------------------------------------------------------------------------------------------


def _json(text: TextFile) -> Any:
    try:
        found = json.loads(text.content or "null")
        json.dumps(found)  # check that it is not nested too deeply
        return found
    except (ValueError, RecursionError):
        return None

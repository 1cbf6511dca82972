"""`maverick report RUN_DIR`: write a report of a run as one self-contained HTML file without scripts.

All content comes from the run's files, which are untrusted data: text is escaped, and numbers are plotted.
"""

import pathlib
from typing import Any

from launch.report.expert_load import heatmaps
from launch.report.html_parts import by_width, escape, json_of, pages_bytes, section, table, time_bar
from launch.report.metrics import FOLDED, GROUPS
from launch.report.plots import NARROW, Drawn, draw_all
from launch.report.run_record import RunRecord, TextFile, read_run
from launch.report.setup import changed_at_restarts, machine, settings, starts
from launch.report.style import PAGE
from launch.report.summary import config_values, constant_rows, facts, headline, models, notes, stage_rows, verdict
from launch.report.wall_time import energy, start_rows, summary, timeline_svg
from maverick_jax.files import write_atomically

MAX_SAMPLE = 20_000
"""Most characters of the sample that are shown."""


def report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Write `report.html` into a run's directory, from the files that the run has written so far; returns its path.

    A run without metrics gets a report too. Raises InputError if the directory is not a run.
    """
    record = read_run(run_dir)
    path = record.directory / "report.html"
    write_atomically(path, pages_bytes(page(record)))
    return path


def page(record: RunRecord) -> str:
    """The HTML of the report."""
    config, environment = config_values(record), json_of(record.environment)
    experts = config.get("model.num_local_experts")
    drawn = draw_all(record, experts if type(experts) is int and experts > 1 else None)
    said = verdict(record)
    began = starts(environment)
    body = [
        f"<h1>{escape(record.name)}</h1>",
        f'<p class="lead">{escape(headline(record, config))}</p>',
        f'<div class="verdict">{"".join(f"<p>{escape(text)}</p>" for text in said)}</div>' if said else "",
        *(f'<p class="note">{escape(note)}</p>' for note in notes(record)),
        _tiles(facts(record, environment)),
        *section("Stages", table(stage_rows(record), header=True)),
        *section("Teacher and student", table(models(record, config, environment), header=True)),
        *_plots(drawn, heatmaps(record.training)),
        *_sample(record.sample),
        *section("Constant during the run", table(constant_rows(record))),
        "<h2>Where the time went</h2>",
        _time(record, config),
        "<h2>How it was made</h2>",
        table([*began, *settings(config)]) or "<p>Not recorded.</p>",
        "<h2>Machine and software</h2>",
        table(machine(environment)) or _file(record.environment, "environment.json"),
        f"<details><summary>The whole config</summary>{_file(record.config, 'config.yaml')}</details>",
    ]
    return PAGE.format(title=escape(f"{record.name}: maverick-jax run"), body="\n".join(filter(None, body)))


# ---- HTML ------------------------------------------------------------------------------------------------------------


def _plots(drawn: list[Drawn], loads: str) -> list[str]:
    """loads: heatmaps, which end the group of experts."""
    if not drawn:
        return ["<h2>Results</h2>", "<p>Nothing to draw yet.</p>"]
    found = []
    for group, title in GROUPS.items():
        figures = "".join(_figure(plot) for plot in drawn if plot.group == group) + loads * (group == "experts")
        if not figures:
            continue
        plots = f'<div class="plots">{figures}</div>'
        found.append(
            f"<details><summary>{title}</summary>{plots}</details>" if group in FOLDED else f"<h2>{title}</h2>{plots}"
        )
    return found


def _figure(drawn: Drawn) -> str:
    remarks = " ".join(f"<small>{escape(text)}</small>" for text in (drawn.plot.about, "; ".join(drawn.notes)) if text)
    kind = ' class="hero"' if drawn.plot.wide else ""
    picture = by_width(drawn.svg, drawn.narrow)
    return f"<figure{kind}><figcaption>{escape(drawn.title)}{remarks}</figcaption>{picture}</figure>"


def _tiles(found: dict[str, tuple[str, str]]) -> str:
    tiles = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(remark)}</small></dd></div>"
        for name, (value, remark) in found.items()
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _time(record: RunRecord, config: dict[str, Any]) -> str:
    """Goodput: a bar, the classes over time with a legend, and the starts."""
    found = record.goodput
    if not found.wall:
        return "<p>Not recorded: the run has no goodput.jsonl.</p>"
    remarks = "".join(f"<p>{escape(text)}</p>" for text in (summary(found), energy(found, config)) if text)
    plot = by_width(timeline_svg(found), timeline_svg(found, NARROW))
    figure = f'<figure class="hero"><figcaption>Over time</figcaption>{plot}</figure>' if found.wall >= 1 else ""
    changed = table(changed_at_restarts(json_of(record.environment)), header=True)
    return f"{remarks}{time_bar(found)}{figure}{table(start_rows(found), header=True)}{changed}"


def _sample(sample: TextFile) -> list[str]:
    if sample.content is None:
        return []
    cut = "\n[...]" if sample.cut or len(sample.content) > MAX_SAMPLE else ""
    text = escape(sample.content[:MAX_SAMPLE] + cut)
    return ["<h2>What the model writes</h2>", f'<pre class="sample">{text}</pre>']


def _file(text: TextFile, name: str) -> str:
    if text.content is None:
        return f"<p>{name} is missing.</p>"
    return f"<pre>{escape(text.content)}{escape('[...]') if text.cut else ''}</pre>"

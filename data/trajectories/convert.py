"""`maverick data convert`: convert trajectories of any known format to ours, one JSON object per line."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.finding import listed
from data.trajectories.fields import Unknown
from data.trajectories.formats import ours
from data.trajectories.reading import Malformed, Tally, read_tools, read_trajectories
from data.trajectories.writing import new_file, require_new
from maverick_jax.errors import InputError, harmless

SHOWN = 20
"""Most names of fields that are printed."""


def convert(
    source: str,
    out: str,
    *,
    format: str | None = None,
    unknown: Unknown = "keep",
    malformed: Malformed = "stop",
    tools: str | None = None,
) -> dict[str, Any]:
    """Write the trajectories of `source` (file or folder) to the new file `out`, which appears when complete. Returns
    the path and the counts of the tally.

    `tools`: a file that declares tools, for trajectories without. Raises InputError if `out` exists, for what
    `read_trajectories` refuses, and if there is no trajectory.
    """
    target = pathlib.Path(out).expanduser()
    require_new(target)
    declared = read_tools(tools) if tools is not None else ()
    tally = Tally()
    trajectories = read_trajectories(
        source, format=format, unknown=unknown, malformed=malformed, tools=declared, tally=tally
    )
    with new_file(target) as file:
        for trajectory in trajectories:
            file.write(ours.write(trajectory) + "\n")
        if tally.trajectories == 0:
            raise InputError(nothing_read(source, tally))
    return {"out": str(target), **tally.as_dict()}


def nothing_read(source: str, tally: Tally) -> str:
    """The error message if no record of `source` is a trajectory."""
    first = f"; the first problem: {tally.problems[0]}" if tally.problems else ""
    return f"{source}: none of its {tally.records:,} records is a trajectory{first}"


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of `convert` as a table."""
    console = console or Console()
    table = Table(title=Text(harmless(found["out"])), show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for name in ("files", "records", "trajectories", "malformed", "messages", "calls", "failed", "recovered",
                 "recoveries"):  # fmt: skip
        table.add_row(name, f"{found[name]:,}")
    console.print(table)
    formats = ", ".join(f"{name} ({count:,})" for name, count in found["formats"].items())
    console.print(f"formats: {formats}", markup=False, highlight=False)
    for key, words in (
        ("unknown_fields", "unknown fields, kept in extra"),
        ("left_out_fields", "left out (duplicates, padding)"),
    ):
        if found[key]:
            names = [f"{harmless(name)} ({count:,})" for name, count in list(found[key].items())[:SHOWN]]
            more = f", and {len(found[key]) - SHOWN} more" if len(found[key]) > SHOWN else ""
            console.print(f"{words}: {', '.join(names)}{more}", markup=False, highlight=False)
    if files := found["left_out_files"]:
        text = harmless(f"{len(files):,} files left out: {listed(files)}")
        console.print(text, markup=False, highlight=False, soft_wrap=True)

"""`maverick data convert`: runs of any known format into ours, one JSON object a line."""

import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.trajectories.fields import Unknown
from data.trajectories.formats import ours
from data.trajectories.reading import Malformed, Tally, read_tools, read_trajectories
from data.trajectories.writing import new_file, require_new
from maverick_jax.errors import InputError, harmless

SHOWN = 20
"""Problems and names of fields that are printed for a person."""


def convert(
    source: str,
    out: str,
    *,
    format: str | None = None,
    unknown: Unknown = "keep",
    malformed: Malformed = "stop",
    tools: str | None = None,
) -> dict[str, Any]:
    """Write the runs of `source` (file or folder) to the new file `out`, whole or not at all; counts of all there was.

    `tools`: a file that declares them, for runs that do not. Raises InputError for an `out` that is there, for what
    `read_trajectories` refuses, and where no run is left.
    """
    target = pathlib.Path(out).expanduser()
    require_new(target)
    declared = read_tools(tools) if tools is not None else ()
    tally = Tally()
    runs = read_trajectories(source, format=format, unknown=unknown, malformed=malformed, tools=declared, tally=tally)
    with new_file(target) as file:
        for trajectory in runs:
            file.write(ours.write(trajectory) + "\n")
        if tally.trajectories == 0:
            raise InputError(nothing_read(source, tally))
    return {"out": str(target), **tally.as_dict()}


def nothing_read(source: str, tally: Tally) -> str:
    """What to say where no record of `source` is a run."""
    first = f"; the first: {tally.problems[0]}" if tally.problems else ""
    return f"{source}: no run can be read of {tally.records:,} records{first}"


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print what `convert` has returned, for a person."""
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
    for key, words in (("unknown_fields", "unknown, kept in extra"), ("left_out_fields", "copies, left out")):
        if found[key]:
            names = [f"{harmless(name)} ({count:,})" for name, count in list(found[key].items())[:SHOWN]]
            more = f", and {len(found[key]) - SHOWN} more" if len(found[key]) > SHOWN else ""
            console.print(f"{words}: {', '.join(names)}{more}", markup=False, highlight=False)

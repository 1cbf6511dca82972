"""The report of curation: every dropped trajectory with the reason, and counts of replaced personal data."""

import array
import collections
import dataclasses
import math
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import harmless

MAX_NAMED = 100_000
"""Maximum number of dropped trajectories that are listed; all are counted."""
SHOWN = 20
"""Maximum number of dropped trajectories that are printed."""


@dataclasses.dataclass(frozen=True)
class RecordLocation:
    """How a report identifies a trajectory. The field names are keys of the report's JSON."""

    run: str
    """Id of the trajectory, or its file and record."""
    file: str
    record: int | None
    line: int | None


def location_of(trajectory: Trajectory) -> RecordLocation:
    """The trajectory's location, named by its id or else by its file and record."""
    found = trajectory.provenance
    name = found.id if found.id is not None else f"{found.file}: record {found.record}"
    return RecordLocation(name, found.file, found.record, found.line)


@dataclasses.dataclass
class Report:
    """Counts of a curation; at its end `read == kept + dropped`, and `dropped` is the sum of `dropped_by`."""

    read: int = 0
    kept: int = 0
    dropped: int = 0
    matched: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Rule -> number of trajectories that it applies to, for all active rules. Rules that compare trajectories apply
    only to those that pass the others."""
    dropped_by: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Rule -> number of trajectories for which it is the first that applies."""
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The first dropped trajectories: run (name), file, record, line, rule, reason."""
    scores: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    """Scores of the trajectories that passed every rule except `keep_best`."""
    replaced: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Kind of personal data -> number of places where it was replaced."""
    values: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Kind of personal data -> number of different values replaced in a trajectory, summed over trajectories."""
    left: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Kind of personal data -> number of places where it was kept, because it is structure (keys, tool names, ids)."""

    def drop(self, location: RecordLocation, reasons: dict[str, str]) -> None:
        """Record a dropped trajectory; `reasons`: rule -> reason, of which the first counts."""
        self.dropped += 1
        self.matched.update(reasons.keys())
        rule, reason = next(iter(reasons.items()))
        self.dropped_by[rule] += 1
        if len(self.runs) < MAX_NAMED:
            self.runs.append({**dataclasses.asdict(location), "rule": rule, "reason": reason})

    def as_dict(self, named: int = MAX_NAMED) -> dict[str, Any]:
        """The report as a JSON object that lists at most `named` dropped trajectories."""
        rules = {rule: {"matched": self.matched[rule], "dropped": self.dropped_by[rule]} for rule in self.matched}
        kinds = sorted({*self.replaced, *self.left})
        counters = {"values": self.values, "places": self.replaced, "left_in_structure": self.left}
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": self.dropped,
            "rules": rules,
            "scores": _quantiles(self.scores),
            "scrubbed": {kind: {name: found[kind] for name, found in counters.items()} for kind in kinds},
            "runs": self.runs[:named],
            "not_named": self.dropped - len(self.runs[:named]),
        }


def _quantiles(scores: array.array) -> dict[str, float]:
    found = sorted(scores)
    if not found:
        return {}
    at = {"min": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "max": 1.0}
    quantiles = {name: found[round(q * (len(found) - 1))] for name, q in at.items()}
    return {**quantiles, "mean": round(math.fsum(found) / len(found), 6)}


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """Print a report (its `as_dict`) as tables."""
    console = console or Console()
    console.print(
        f"{found['read']:,} trajectories: {found['kept']:,} kept, {found['dropped']:,} dropped", highlight=False
    )
    table = Table()
    table.add_column("rule")
    table.add_column("matched", justify="right")
    table.add_column("dropped", justify="right")
    for rule, counts in found["rules"].items():
        table.add_row(rule, f"{counts['matched']:,}", f"{counts['dropped']:,}")
    console.print(table)
    if found["scores"]:
        quantiles = ", ".join(f"{name} {value:.3f}" for name, value in found["scores"].items())
        console.print(f"scores: {quantiles}", markup=False, highlight=False)
    if found["scrubbed"]:
        console.print(_scrubbed(found["scrubbed"]))
    for run in found["runs"][:SHOWN]:
        console.print(Text(harmless(f"{run['run']}: {run['rule']}: {run['reason']}")))
    if (more := found["dropped"] - SHOWN) > 0:
        console.print(f"... and {more:,} more (--report FILE lists them)")


def _scrubbed(kinds: dict[str, dict[str, int]]) -> Table:
    table = Table(title="replaced")
    table.add_column("kind")
    columns = ("values", "places", "left_in_structure")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for kind, counts in kinds.items():
        table.add_row(Text(harmless(kind)), *[f"{counts[column]:,}" for column in columns])
    return table

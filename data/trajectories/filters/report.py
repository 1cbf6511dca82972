"""What the filter stage did: every run that was left out, with the reason, and what was replaced in the others."""

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
"""Runs left out that are named; all are counted."""
SHOWN = 20
"""Runs left out that are printed for a person."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Which run, as a report names it."""

    run: str
    file: str
    record: int | None
    line: int | None


def place_of(trajectory: Trajectory) -> Place:
    """Its id, else its place in its file."""
    found = trajectory.provenance
    name = found.id if found.id is not None else f"{found.file}: record {found.record}"
    return Place(name, found.file, found.record, found.line)


@dataclasses.dataclass
class Report:
    """Filled in as runs go by: `read == kept + dropped`, and `dropped` is the sum of `dropped_by`."""

    read: int = 0
    kept: int = 0
    dropped: int = 0
    matched: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Runs that a rule applies to. Rules that compare runs are asked of those only that pass the others.
    Those that are on and apply to none are here with 0."""
    dropped_by: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Runs by the first rule that applies to them."""
    runs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """The first of those left out: name, file, record, line, rule, reason."""
    scores: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    """Of the runs that passed every rule but `keep_best`."""
    replaced: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Places where something was replaced, by kind."""
    values: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Different values that were replaced in a run, summed over runs, by kind."""
    left: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Places where something was found but stays, for it is structure (keys, names of tools, ids), by kind."""

    def drop(self, place: Place, reasons: dict[str, str]) -> None:
        """One run is left out; `reasons` by rule, the first of which counts."""
        self.dropped += 1
        self.matched.update(reasons.keys())
        rule, reason = next(iter(reasons.items()))
        self.dropped_by[rule] += 1
        if len(self.runs) < MAX_NAMED:
            self.runs.append({**dataclasses.asdict(place), "rule": rule, "reason": reason})

    def as_dict(self, named: int = MAX_NAMED) -> dict[str, Any]:
        """JSON values; at most `named` runs are named."""
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
    """Print a report's `as_dict` for a person."""
    console = console or Console()
    table = Table(title=f"{found['read']:,} runs: {found['kept']:,} kept, {found['dropped']:,} dropped")
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
        console.print(f"... and {more:,} more (--report FILE names them)")


def _scrubbed(kinds: dict[str, dict[str, int]]) -> Table:
    table = Table(title="replaced")
    table.add_column("kind")
    columns = ("values", "places", "left_in_structure")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for kind, counts in kinds.items():
        table.add_row(Text(harmless(kind)), *[f"{counts[column]:,}" for column in columns])
    return table

"""Files of any known format, read into the normal form one record at a time; what cannot be read is counted and told.

A record that is malformed stops the reading, or is skipped and counted: as configured, never in silence.
"""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from data.trajectories.actions import find_actions
from data.trajectories.builder import at
from data.trajectories.fields import Fields, Seen, Unknown
from data.trajectories.files import Record, find_files, parse, read_records
from data.trajectories.formats import FORMATS, Format, detect, find_format
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError, harmless
from maverick_jax.text.chat import Tool
from maverick_jax.text.chat.openai import tools_from_openai

log = logging.getLogger(__name__)
Malformed = Literal["stop", "skip"]
MAX_PROBLEMS = 1_000
"""Problems that a tally keeps; all are counted and logged."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why one record is not among the trajectories."""

    file: str
    record: int
    line: int | None
    reason: str

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}: record {self.record}{line}: {self.reason}"


@dataclasses.dataclass
class Tally:
    """What became of every record: `records == trajectories + malformed`."""

    files: int = 0
    records: int = 0
    trajectories: int = 0
    malformed: int = 0
    formats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Messages, calls, failed, recovered (failed ones that were made good), recoveries (calls that did)."""
    seen: Seen = dataclasses.field(default_factory=Seen)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    """The first of them."""

    def add(self, trajectory: Trajectory, form: Format, seen: Seen) -> None:
        self.trajectories += 1
        self.formats[form.name] += 1
        self.counts.update(count(trajectory))
        self.seen.add(seen)

    def refuse(self, problem: Problem) -> None:
        self.malformed += 1
        log.warning("skipped: %s", harmless(str(problem)))
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        counts = {name: self.counts[name] for name in ("messages", "calls", "failed", "recovered", "recoveries")}
        return {
            "files": self.files,
            "records": self.records,
            "trajectories": self.trajectories,
            "malformed": self.malformed,
            "formats": dict(self.formats),
            **counts,
            "unknown_fields": dict(sorted(self.seen.kept.items())),
            "left_out_fields": dict(sorted(self.seen.left_out.items())),
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }


def count(trajectory: Trajectory) -> dict[str, int]:
    """Messages, and calls by what became of them."""
    actions = find_actions(trajectory)
    return {
        "messages": len(trajectory.steps),
        "calls": len(actions),
        "failed": sum(action.failed for action in actions),
        "recovered": sum(action.recovered_by is not None for action in actions),
        "recoveries": sum(action.recovers for action in actions),
    }


def read_trajectories(
    source: str | pathlib.Path,
    *,
    format: str | None = None,
    unknown: Unknown = "keep",
    malformed: Malformed = "stop",
    tools: Sequence[Tool] = (),
    tally: Tally | None = None,
) -> Iterator[Trajectory]:
    """The trajectories of a file or a folder of files, in order, one in memory at a time.

    `format`: a name of `FORMATS`; None: each file's first recognisable record tells. `unknown`: fields without a
    meaning here are kept in `extra` or make a record malformed. `malformed`: what then happens. `tools`: of records
    that declare none. `tally` is filled in as reading goes on. Raises InputError naming file, record and field.
    """
    chosen = find_format(format) if format is not None else None
    tally = Tally() if tally is None else tally
    folder, files = find_files(source)
    for path in files:
        tally.files += 1
        name = path.relative_to(folder).as_posix()
        form = chosen
        for record in read_records(path):
            tally.records += 1
            seen = Seen(unknown)
            try:
                value = record.load()
                form = form or detect(value)
                trajectory = _read(value, form, seen, tools)
            except InputError as error:
                if malformed == "stop":
                    raise InputError(str(Problem(str(path), record.number, record.line, str(error)))) from None
                tally.refuse(Problem(name, record.number, record.line, str(error)))
                continue
            tally.add(trajectory, form, seen)
            yield _from(trajectory, form, name, record)


def read_tools(path: str | pathlib.Path) -> tuple[Tool, ...]:
    """Tools declared in a file of JSON: a list in OpenAI's form. Raises InputError."""
    try:
        text = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return at(str(path), lambda: tools_from_openai(parse(text)))


def _read(value: Any, form: Format, seen: Seen, tools: Sequence[Tool]) -> Trajectory:
    if isinstance(value, dict) and not form.matches(value):
        others = [other.name for other in FORMATS.values() if other.matches(value)]
        what = f"it looks like {' or '.join(others)}" if others else f"that has {form.needs}"
        raise InputError(f"is not of format {form.name}, as this file is read: {what}")
    trajectory = form.read(Fields(value, "", seen))
    if tools and not trajectory.tools:
        trajectory = dataclasses.replace(trajectory, tools=tuple(tools))
    _require_known_tools(trajectory)
    return trajectory


def _require_known_tools(trajectory: Trajectory) -> None:
    """A call of a tool that was not declared is an error of the run if its result says so, else of the record."""
    declared = {tool.name for tool in trajectory.tools}
    for action in find_actions(trajectory) if declared else ():
        if action.call.name not in declared and not action.failed:
            known = ", ".join(sorted(declared))[:400]
            where = f"messages[{action.step}]: call {action.position}"
            raise InputError(f"{where}: {action.call.name!r:.80}: unknown tool; declared are {known}")


def _from(trajectory: Trajectory, form: Format, name: str, record: Record) -> Trajectory:
    """With where it was read; one of our own keeps what it says of that."""
    provenance = trajectory.provenance
    if provenance.format:
        return trajectory
    place = dataclasses.replace(provenance, format=form.name, file=name, record=record.number, line=record.line)
    return dataclasses.replace(trajectory, provenance=place)

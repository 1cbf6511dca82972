"""Read files of any known format into the normal form, one record at a time.

A malformed record stops the reading, or is skipped with a warning and counted, as configured.
"""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from data.trajectories import tagged
from data.trajectories.actions import find_actions
from data.trajectories.builder import at
from data.trajectories.fields import FieldCounts, Fields, Unknown
from data.trajectories.files import Record, find_files, parse, read_records
from data.trajectories.formats import FORMATS, Format, detect, find_format
from data.trajectories.formats.openai import take_tools
from data.trajectories.meaning import refuse_record
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError, harmless
from maverick_jax.text.chat import Role, Tool
from maverick_jax.text.chat.openai import tools_from_openai

log = logging.getLogger(__name__)
Malformed = Literal["stop", "skip"]
MAX_PROBLEMS = 1_000
"""Most problems that a tally lists; all of them are counted and logged."""


@dataclasses.dataclass(frozen=True)
class RecordProblem:
    """Why a record was skipped."""

    file: str
    record: int
    line: int | None
    reason: str

    def __str__(self) -> str:
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}: record {self.record}{line}: {self.reason}"


@dataclasses.dataclass
class Tally:
    """Counts of a reading; `records == trajectories + malformed` at its end."""

    files: int = 0
    records: int = 0
    trajectories: int = 0
    malformed: int = 0
    formats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Messages, calls, failed calls, recovered (failed calls with a recovery) and recoveries (calls that recover)."""
    seen: FieldCounts = dataclasses.field(default_factory=FieldCounts)
    problems: list[RecordProblem] = dataclasses.field(default_factory=list)
    """The first problems."""
    left_out_files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Files of the folder that are not read, and why."""

    def add(self, trajectory: Trajectory, form: Format, seen: FieldCounts) -> None:
        self.trajectories += 1
        self.formats[form.name] += 1
        self.counts.update(count(trajectory))
        self.seen.add(seen)

    def refuse(self, problem: RecordProblem) -> None:
        self.malformed += 1
        log.warning("skipping malformed record: %s", harmless(str(problem)))
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        """The counts as a JSON object."""
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
            "left_out_files": self.left_out_files,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }


def count(trajectory: Trajectory) -> dict[str, int]:
    """Numbers of messages, calls, failed calls, recovered calls and recoveries."""
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
    """The trajectories of a file or of the files in a folder, in order, with one in memory at a time.

    `format`: a name in `FORMATS`; None detects it from the first recognizable record of each file. `unknown`: whether
    unknown fields are kept in `extra` or make a record malformed. `malformed`: whether a malformed record stops the
    reading or is skipped. `tools`: tools for records that declare none. `tally` is updated during reading. Raises
    InputError naming file, record and field.
    """
    chosen = find_format(format) if format is not None else None
    tally = Tally() if tally is None else tally
    found = find_files(source)
    tally.left_out_files |= found.left_out
    for path in found.files:
        tally.files += 1
        name = path.relative_to(found.root).as_posix()
        form = chosen
        for record in read_records(path):
            tally.records += 1
            seen = FieldCounts(unknown)
            try:
                value = record.load()
                refuse_record(value)
                form = form or detect(value)
                trajectory = _read(value, form, seen, tools)
            except InputError as error:
                if malformed == "stop":
                    raise InputError(str(RecordProblem(str(path), record.number, record.line, str(error)))) from None
                tally.refuse(RecordProblem(name, record.number, record.line, str(error)))
                continue
            tally.add(trajectory, form, seen)
            yield _from(trajectory, form, name, record)


def read_tools(path: str | pathlib.Path) -> tuple[Tool, ...]:
    """Tools declared in a JSON file: a list in OpenAI's format. Raises InputError if it is malformed."""
    try:
        text = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    return at(str(path), lambda: tools_from_openai(parse(text)))


def _read(value: Any, form: Format, seen: FieldCounts, tools: Sequence[Tool]) -> Trajectory:
    if isinstance(value, dict) and not form.matches(value):
        others = [other.name for other in FORMATS.values() if other.matches(value)]
        hint = f"it looks like {' or '.join(others)}" if others else f"expected {form.needs}"
        raise InputError(f"is not of format {form.name}, which this file is read as: {hint}")
    trajectory = form.read(Fields(value, "", seen))
    if not trajectory.tools and (found := _tools_in_text(trajectory, seen) or tuple(tools)):
        trajectory = dataclasses.replace(trajectory, tools=found)
    _require_known_tools(trajectory)
    return trajectory


def _tools_in_text(trajectory: Trajectory, seen: FieldCounts) -> tuple[Tool, ...]:
    """Tools that the system message declares between `<tools>` tags; the text keeps them."""
    first = trajectory.steps[0].message
    found = tagged.declared_tools(first.text) if first.role is Role.SYSTEM else []
    return take_tools(Fields({"tools": found}, "", seen)) if found else ()


def _require_known_tools(trajectory: Trajectory) -> None:
    """Raises InputError if an undeclared tool is called, unless the result of the call is an error."""
    declared = {tool.name for tool in trajectory.tools}
    for action in find_actions(trajectory) if declared else ():
        if action.call.name not in declared and not action.failed:
            known = ", ".join(sorted(declared))[:400]
            where = f"messages[{action.step}]: call {action.position}"
            raise InputError(f"{where}: {action.call.name!r:.80}: unknown tool; declared tools: {known}")


def _from(trajectory: Trajectory, form: Format, name: str, record: Record) -> Trajectory:
    """`trajectory` with its provenance; a record of our own format keeps the provenance it has."""
    provenance = trajectory.provenance
    if provenance.format:
        return trajectory
    provenance = dataclasses.replace(provenance, format=form.name, file=name, record=record.number, line=record.line)
    return dataclasses.replace(trajectory, provenance=provenance)

"""Read files of pairs, one record at a time, or make pairs of files of trajectories."""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from data.policy import ToolPolicy
from data.preferences.corruptions import corrupted
from data.preferences.forms import FORMS, PairForm, Side, detect
from data.preferences.outcomes import of_outcomes
from data.preferences.pair import PreferencePair
from data.preferences.replays import Replays
from data.preferences.violations import of_violations
from data.trajectories.builder import at
from data.trajectories.fields import FieldCounts, Fields, Unknown
from data.trajectories.files import Record, read_records
from data.trajectories.formats import find_format
from data.trajectories.meaning import refuse_record
from data.trajectories.reading import Malformed, RecordProblem, Tally, read_trajectories
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError
from maverick_jax.text.chat import Tool

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Reads pairs. `make`, `per_task`, `form`, `unknown`, `malformed`: as in `PreferencesConfig`. `tools`: for records
    that declare none."""

    make: str | None = None
    per_task: int = 16
    form: str | None = None
    unknown: Unknown = "keep"
    malformed: Malformed = "stop"
    tools: Sequence[Tool] = ()
    policy: ToolPolicy | None = None
    """The rules, for `make: violations`."""
    replays: Replays | None = None
    """What certifies the mistakes of `make: corruptions`."""
    tally: Tally = dataclasses.field(default_factory=Tally)
    """Updated during reading; a pair counts as a trajectory there."""

    def pairs(self, path: pathlib.Path) -> Iterator[PreferencePair]:
        """The pairs of one file, in order. Raises InputError naming file, record and field."""
        if self.make is None:
            yield from self._of_file(path)
            return
        options: Any = {"unknown": self.unknown, "malformed": self.malformed, "tools": self.tools}
        runs = read_trajectories(path, **options, tally=self.tally)
        if self.make == "outcomes":
            yield from of_outcomes(runs, self.per_task)
        elif self.policy is not None:
            yield from of_violations(runs, self.policy, self.per_task)
        else:
            yield from (pair for run in runs for pair in corrupted(run, self.per_task, self.replays))

    def _of_file(self, path: pathlib.Path) -> Iterator[PreferencePair]:
        form = None if self.form is None else FORMS[self.form]
        self.tally.files += 1
        for record in read_records(path):
            self.tally.records += 1
            try:
                value = record.load()
                form = form or detect(value)
                pair = self._pair(value, form, record, path)
            except InputError as error:
                if self.malformed == "stop":
                    raise InputError(str(RecordProblem(str(path), record.number, record.line, str(error)))) from None
                self.tally.refuse(RecordProblem(path.name, record.number, record.line, str(error)))
                continue
            self.tally.trajectories += 1
            self.tally.formats[form.name] += 1
            yield pair

    def _pair(self, value: Any, form: PairForm, record: Record, path: pathlib.Path) -> PreferencePair:
        if not isinstance(value, dict) or not form.matches(value):
            raise InputError(f"is not of form {form.name}, which this file is read as: expected {form.needs}")
        sides = form.read(value)
        for name in sides.left_out:
            self.tally.seen.left_out[name] += 1
        chosen = self._side("chosen", sides.chosen, self.tally.seen, record, path)
        counted = self.tally.seen if chosen is None else FieldCounts()
        rejected = self._side("rejected", sides.rejected, counted, record, path)
        return PreferencePair(chosen, rejected, sides.task, sides.origin)

    def _side(
        self, name: str, side: Side | None, seen: FieldCounts, record: Record, path: pathlib.Path
    ) -> Trajectory | None:
        """`seen`: counts the unknown fields, which both sides share, once."""
        if side is None:
            return None
        fields = FieldCounts(self.unknown)

        def read() -> Trajectory:
            refuse_record(side.record)
            return find_format(side.format).read(Fields(side.record, "", fields))

        found = at(name, read)
        seen.add(fields)
        if not found.tools and self.tools:
            found = dataclasses.replace(found, tools=tuple(self.tools))
        if found.provenance.format:
            return found
        where = dataclasses.replace(
            found.provenance, format=side.format, file=path.name, record=record.number, line=record.line
        )
        return dataclasses.replace(found, provenance=where)

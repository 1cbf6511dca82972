"""Reads files of samples with pictures, and counts what it reads, skips and refuses."""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from data.pictures.containers import RecordEntry, read_entries
from data.pictures.formats import FORMATS, PictureFormat, RecordContext, detect
from data.pictures.formats.base import Options, Record
from data.pictures.sample import Sample, SampleProblem, Where, as_problems
from data.pictures.shelf import Shelf
from data.trajectories.meaning import is_empty, refuse_record
from data.trajectories.reading import RecordProblem
from maverick_jax.errors import InputError, harmless

MAX_PROBLEMS, MAX_NAMES = 1_000, 1_000
"""Most problems that a tally lists, and most names of unknown fields that it counts apart."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class SampleTally:
    """Counts of a reading; `records == samples + repeated + sum(refused)` at its end."""

    malformed: Literal["stop", "skip"] = "stop"
    files: int = 0
    records: int = 0
    samples: int = 0
    repeated: int = 0
    """Documents whose address an earlier document had, where the file says that this may happen."""
    pictures: int = 0
    formats: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Refused samples by reason (`REASONS`)."""
    unknown: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Fields of records, and endings of members, that have no effect."""
    problems: list[RecordProblem] = dataclasses.field(default_factory=list)
    """The first problems."""

    def refuse(self, where: Where, problem: SampleProblem) -> None:
        """Counts a refused sample. Raises InputError where problems stop the reading."""
        listed = RecordProblem(where.file, where.record, where.line, str(problem))
        if self.malformed == "stop":
            raise InputError(f"{listed} (`malformed: skip` skips such samples and counts them)")
        self.refused[problem.reason] += 1
        _log.warning("skipping a sample: %s", harmless(str(listed)))
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(listed)

    def without_effect(self, names: Sequence[str]) -> None:
        for name in names:
            self.unknown[name if name in self.unknown or len(self.unknown) < MAX_NAMES else "(others)"] += 1

    def as_dict(self) -> dict[str, Any]:
        """The counts as a JSON object."""
        return {
            **{name: getattr(self, name) for name in ("files", "records", "samples", "repeated", "pictures")},
            "formats": dict(self.formats),
            "refused": dict(self.refused),
            "unknown_fields": dict(self.unknown.most_common()),
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
        }


def read_samples(
    paths: Sequence[pathlib.Path], folder: pathlib.Path | None, format: str | None, options: Options, tally: SampleTally
) -> Iterator[tuple[Where, Sample]]:
    """The samples of files in order; no picture is read. `folder`: of the pictures; None: that of each file. `format`:
    a name of `FORMATS`; None: the first record of each file determines it. Raises InputError for files that cannot be
    read, and for bad samples if these stop the reading."""
    addresses: set[str] = set()
    for path in paths:
        tally.files += 1
        form = None if format is None else FORMATS[format]
        for entry in read_entries(path):
            tally.records += 1
            where = Where(str(path), entry.number, entry.line)
            try:
                with as_problems():
                    record = entry.load()
                    form = form or detect(record)
                    if _is_repeated(form, record, addresses):
                        tally.repeated += 1
                        continue
                    sample = _read(form, record, entry, folder or path.parent, options)
            except SampleProblem as problem:
                tally.refuse(where, problem)
                continue
            tally.formats[form.name] += 1
            names = [name for name, value in record.items() if name not in form.fields and not is_empty(value)]
            tally.without_effect([*names, *(f".{ending}" for ending in entry.left_out)])
            yield where, sample


def _read(form: PictureFormat, record: Record, entry: RecordEntry, folder: pathlib.Path, options: Options) -> Sample:
    if not form.matches(record):
        raise SampleProblem(
            "record", f"is not of format {form.name}, as which this file is read: expected {form.needs}"
        )
    refuse_record({name: value for name, value in record.items() if name not in form.fields})
    context = RecordContext(Shelf(folder, entry.members), options, tuple(entry.members.values()))
    return form.read(record, context)


def _is_repeated(form: PictureFormat, record: Record, addresses: set[str]) -> bool:
    """Whether a document of MMC4 says that it may be there twice, and is."""
    address = record.get("url")
    if form.name != "mmc4" or not record.get("could_have_url_duplicate") or not isinstance(address, str):
        return False
    if address in addresses:
        return True
    addresses.add(address)
    return False

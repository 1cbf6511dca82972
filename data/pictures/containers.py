"""Reads records with pictures from files: JSON, JSON lines, Parquet tables and tar archives of the WebDataset kind."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from data.compression import first_line, require_plain
from data.pictures.sample import Picture, SampleProblem, as_problems
from data.trajectories import files as trajectory_files
from data.trajectories.files import parse, read_records
from maverick_jax.errors import InputError
from maverick_jax.images.decode import MAX_BYTES

TABLE_ROWS = 16
"""Rows of a table in memory at a time."""
TABLE_BUFFER = 1 << 20
"""Bytes of a column that are read at a time."""
MAX_TEXT = 1 << 24
"""Largest member of an archive with a record, in bytes."""
MAX_MEMBERS = 1 << 22
"""Most members of one archive, whose headers are held in memory."""
PICTURES = ("jpg", "jpeg", "png", "webp")
"""Last endings of an archive's members that are pictures."""
TEXTS = {"json": "record", "txt": "caption", "caption": "caption"}
"""Last endings of an archive's members that are records."""


@dataclasses.dataclass(frozen=True)
class RecordEntry:
    """One record of a file, not yet parsed."""

    number: int
    line: int | None
    load: Callable[[], dict[str, Any]]
    """Raises InputError."""
    members: dict[str, Picture] = dataclasses.field(default_factory=dict)
    """Pictures of the same sample in an archive, by the names of their members, in order."""
    left_out: tuple[str, ...] = ()
    """Endings of members of the sample that are not read."""


def read_entries(path: pathlib.Path) -> Iterator[RecordEntry]:
    """The records of a file. Raises InputError for a file that cannot be read to its end."""
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        match path.suffix.lower():
            case ".parquet":
                yield from _rows(path)
            case ".tar":
                yield from _samples(path)
            case _:
                yield from _json(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _json(path: pathlib.Path) -> Iterator[RecordEntry]:
    """The elements of a list or the lines; of one object, the elements of its list `data`, as DocVQA has them."""
    number = 0
    for record in read_records(path):
        whole = _of_document(record)
        for load in [record.load] if whole is None else [lambda v=value: v for value in whole]:
            yield RecordEntry(number, record.line, functools.partial(_object, load))
            number += 1


def _of_document(record: trajectory_files.Record) -> list[Any] | None:
    """The records in the list `data` of a file that is one object, as DocVQA has them; None: it has no such list."""
    if record.line is not None:
        return None
    with contextlib.suppress(InputError):  # reported where the record is loaded
        whole = record.load()
        if isinstance(whole, dict) and isinstance(whole.get("data"), list) and "messages" not in whole:
            return whole["data"]
    return None


def _object(load: Callable[[], Any]) -> dict[str, Any]:
    if not isinstance(value := load(), dict):
        raise SampleProblem("record", f"expected an object, got {type(value).__name__}")
    return value


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _rows(path: pathlib.Path) -> Iterator[RecordEntry]:
    """The rows of a table. Columns are read in pieces, since groups of rows with pictures are large."""
    import pyarrow
    import pyarrow.parquet

    require_plain(path, "Parquet")
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=TABLE_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=TABLE_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    yield RecordEntry(number, None, functools.partial(without_nulls, row))
                    number += 1
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{path}: row {number} or later: damaged, truncated or not Parquet: {first_line(error)}"
        ) from None
    if number == 0:
        raise InputError(f"{path}: the table has no row")


def without_nulls(value: Any) -> Any:
    """A value without the nulls that fill up the objects of a table's column; those of lists mean something."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


# ---- archives --------------------------------------------------------------------------------------------------------


class _CheckedHeader(tarfile.TarInfo):
    """A header of a member. Python before 3.12.12 does not end on a negative size (CVE-2025-8194)."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("negative size")
        return super()._block(count)  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True)
class Member:
    """Where a member of an archive lies."""

    key: str
    """Path up to the first dot of the last part: the name of its sample."""
    ending: str
    """The rest, without the dot, in lower case."""
    offset: int
    size: int
    problem: str = ""


def index_archive(path: pathlib.Path) -> Iterator[Member]:
    """The members of an archive, in order; no contents are read. Raises InputError for a damaged archive."""
    require_plain(path, "tar")
    try:
        with tarfile.open(path, "r:", tarinfo=_CheckedHeader, errorlevel=1) as archive:
            count = 0
            while (member := archive.next()) is not None:
                if (count := count + 1) > MAX_MEMBERS:
                    raise InputError(f"{path}: more than {MAX_MEMBERS:,} members")
                if not member.isdir():
                    yield _member(member)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise InputError(f"{path}: damaged, truncated or not a tar archive: {first_line(error)}") from None


def _member(found: tarfile.TarInfo) -> Member:
    folder, slash, base = found.name.rpartition("/")
    stem, _, ending = base.partition(".")
    problem = ""
    if not found.isreg() or found.issparse():
        problem = f"{found.name:.200}: a link, device or sparse file; expected plain files"
    elif found.name.startswith("/") or ".." in found.name.split("/") or "\\" in found.name or "\0" in found.name:
        problem = f"{found.name:.200}: leads out of the archive; expected a relative path"
    return Member(f"{folder}{slash}{stem}", ending.lower(), found.offset_data, found.size, problem)


def _samples(path: pathlib.Path) -> Iterator[RecordEntry]:
    """The samples of an archive: members that follow each other and have the same key."""
    keys: set[str] = set()
    group: list[Member] = []
    number = 0
    for member in index_archive(path):
        if group and member.key != group[0].key:
            yield _sample(path, number, group, keys)
            number, group = number + 1, []
        group.append(member)
    if not group:
        raise InputError(f"{path}: the archive has no member")
    yield _sample(path, number, group, keys)


def _sample(path: pathlib.Path, number: int, group: list[Member], keys: set[str]) -> RecordEntry:
    key = group[0].key
    again = key in keys
    keys.add(key)
    endings = [member.ending.rpartition(".")[2] for member in group]
    pictures = {f"{key.rpartition('/')[2]}.{member.ending}": _picture(path, member)
                for member, ending in zip(group, endings, strict=True) if ending in PICTURES}  # fmt: skip
    texts = [(member, TEXTS[ending]) for member, ending in zip(group, endings, strict=True) if ending in TEXTS]
    left_out = tuple(ending for ending in endings if ending not in PICTURES and ending not in TEXTS)

    def load() -> dict[str, Any]:
        for member in group:
            if member.problem:
                raise SampleProblem("member", member.problem)
        if again:
            raise SampleProblem("member", f"{key:.200}: a second sample of this name; expected its members together")
        if len({member.ending for member in group}) < len(group):
            raise SampleProblem("member", f"{key:.200}: two members of the same name")
        chosen = sorted(texts, key=lambda found: found[1] != "record")[:1]
        if not chosen:
            raise SampleProblem(
                "record", f"{key:.200}: no member that ends in .json or .txt; it has {', '.join(endings)}"
            )
        ((member, kind),) = chosen
        if member.size > MAX_TEXT:
            raise SampleProblem(
                "record", f"{key:.200}.{member.ending:.80}: {member.size:,} bytes; expected at most {MAX_TEXT:,}"
            )
        data = _bytes(path, member)
        if kind == "record":
            return _object(lambda: parse(data))
        with as_problems():
            return {"caption": _text(data)}

    return RecordEntry(number, None, load, pictures, left_out)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleProblem("record", f"not UTF-8: byte {error.start}: {error.reason}") from None


def _picture(path: pathlib.Path, member: Member) -> Picture:
    def read() -> bytes:
        if member.size > MAX_BYTES:
            raise SampleProblem(
                "picture", f"{member.key}.{member.ending}: {member.size:,} bytes; expected at most {MAX_BYTES:,}"
            )
        return _bytes(path, member)

    return Picture(f"{member.key}.{member.ending}", read)


def _bytes(path: pathlib.Path, member: Member) -> bytes:
    try:
        with path.open("rb") as file:
            found = os.pread(file.fileno(), member.size, member.offset)
    except (OSError, OverflowError) as error:
        raise SampleProblem("member", f"{member.key}.{member.ending}: cannot be read: {error}") from None
    if len(found) < member.size:
        raise SampleProblem("member", f"{member.key}.{member.ending}: the archive ends inside it")
    return found


def as_json(body: dict[str, Any]) -> bytes:
    """A body as JSON. Raises SampleProblem for values that JSON lacks."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        raise SampleProblem("record", f"not JSON: {first_line(error)}") from None

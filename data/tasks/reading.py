"""Rows of evaluation data: JSON lines, comma- and tab-separated tables. Errors name file, line and field."""

import csv
import io
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from data.compression import open_data
from data.trajectories.files import read_records
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean

MAX_TABLE = 1 << 28
"""Largest table, in bytes; it is held in memory."""
MAX_CELL = 1 << 20
_T = TypeVar("_T")
_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", float: "a number"}


class Row(NamedTuple):
    """One row of a file."""

    where: str
    """File and line, for errors."""
    number: int
    """From 0."""
    values: dict[str, Any]

    def get(self, name: str, kind: type[_T]) -> _T:
        """The field `name`. Raises InputError if it is missing or of another type."""
        if name not in self.values:
            raise InputError(f"{self.where}: {name}: is missing{did_you_mean(name, self.values)}")
        return self.of(self.values[name], kind, name)

    def of(self, value: Any, kind: type[_T], name: str) -> _T:
        """`value`, which is called `name` in errors, if it is of the type."""
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.where}: {name}: expected {_NAMES.get(kind, kind.__name__)}, got {value!r:.80}")
        return value

    def refuse(self, name: str, problem: str) -> InputError:
        """The error for a field."""
        return InputError(f"{self.where}: {name}: {problem}")


def existing(path: str) -> pathlib.Path:
    """The path, which may begin with `~`. Raises InputError, with the nearest name, if nothing is there."""
    found = pathlib.Path(path).expanduser()
    if not found.exists():
        names = [p.name for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise InputError(f"{found}: no such file or folder{did_you_mean(found.name, names)}")
    return found


def files_in(path: str, *endings: str) -> list[pathlib.Path]:
    """The file at `path`, or all files directly in that folder with one of `endings`, sorted. Raises InputError if
    there is none."""
    found = existing(path)
    if found.is_file():
        return [found]
    files = sorted(p for p in found.iterdir() if p.is_file() and p.name.endswith(endings))
    if not files:
        raise InputError(f"{found}: the folder contains no file that ends in {' or '.join(endings)}")
    return files


def json_rows(path: pathlib.Path) -> Iterator[Row]:
    """The objects of a file of JSON lines, whatever its ending, or of one JSON list."""
    for record in read_records(path, as_lines=_begins_with_object(path)):
        where = f"{path}: line {record.line}" if record.line else f"{path}: record {record.number}"
        try:
            value = record.load()
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if not isinstance(value, dict):
            raise InputError(f"{where}: expected an object, got {type(value).__name__}")
        yield Row(where, record.number, value)


def _begins_with_object(path: pathlib.Path) -> bool:
    with open_data(path) as file:
        return file.read(1 << 10).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def table_rows(path: pathlib.Path, delimiter: str, names: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a table in UTF-8; all values are text. `names`: of its columns; None: its first line has them."""
    with open_data(path) as file:
        content = file.read(MAX_TABLE + 1)
    if len(content) > MAX_TABLE:
        raise InputError(f"{path}: more than {MAX_TABLE:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8") from None
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    number = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if names is None:
                names = cells
                continue
            where = f"{path}: line {reader.line_num}"
            if len(cells) != len(names):
                raise InputError(f"{where}: {len(cells)} columns; expected {len(names)}: {', '.join(names)[:200]}")
            yield Row(where, number, dict(zip(names, cells, strict=True)))
            number += 1
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from None
    if number == 0:
        raise InputError(f"{path}: the table has no rows")

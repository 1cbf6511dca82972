"""Read records from files: JSON lines, or one JSON document with a record or a list of records. Sizes are bounded."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from maverick_jax.errors import InputError
from maverick_jax.files import no_constant, once
from maverick_jax.settings.section import did_you_mean

LINES, DOCUMENTS = (".jsonl", ".ndjson"), (".json", ".traj")
MAX_LINE = 1 << 26
"""Longest line, in bytes."""
MAX_DOCUMENT = 1 << 28
"""Largest file with a single JSON document, in bytes; it is held in memory."""
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file, not yet parsed."""

    number: int
    """Number of the record, from 0."""
    line: int | None
    """Line of the record, from 1; None if the file is a single document."""
    load: Callable[[], Any]
    """Returns its JSON value. Raises InputError if it is malformed."""


def find_files(source: str | pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder to which names are relative, and the files, sorted, without hidden ones. Raises InputError if there
    are none."""
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        ends = (*LINES, *DOCUMENTS)
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ends and p.is_file() and not _hidden(p, path))
        if not files:
            raise InputError(f"{path}: the folder has no file that ends in {', '.join(ends)}")
        return path, files
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise InputError(f"{path}: no such file or folder{near}")


def read_records(path: pathlib.Path) -> Iterator[Record]:
    """The records of one file; the caller parses each with `load`. Raises InputError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            yield from _lines(file) if _is_lines(path, file) else _document(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse(text: bytes, hint: str = "") -> Any:
    """Parse strict JSON. Raises InputError for anything else, including NaN, duplicate keys and deep nesting."""
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8: byte {error.start}: {error.reason}{hint}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error}{hint}") from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None
    except RecursionError:
        raise InputError("JSON nested too deeply") from None


def _hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _is_lines(path: pathlib.Path, file: BinaryIO) -> bool:
    """Whether the file holds JSON lines: by its suffix, or, for an unknown suffix, if its first line is an object."""
    if path.suffix.lower() in (*LINES, *DOCUMENTS):
        return path.suffix.lower() in LINES
    first = file.readline(MAX_LINE).removeprefix(_BOM).strip()
    file.seek(0)
    return first.startswith(b"{") and first.endswith(b"}")


def _lines(file: BinaryIO) -> Iterator[Record]:
    number, line = 0, 0
    while text := file.readline(MAX_LINE + 1):
        line += 1
        text = text.removeprefix(_BOM) if line == 1 else text
        too_long = len(text) > MAX_LINE
        while len(text) > MAX_LINE and not text.endswith(b"\n"):
            if not (more := file.readline(_CHUNK)):
                break
            text = text[:MAX_LINE] + more[-1:]
        if text.strip():
            yield Record(number, line, _too_long if too_long else _loader(text))
            number += 1
    if number == 0:
        yield Record(0, None, _empty)


def _loader(text: bytes) -> Callable[[], Any]:
    hint = "" if text.endswith(b"\n") else " (the last line has no line break: the file may be truncated)"
    return lambda: parse(text, hint)


def _too_long() -> Any:
    raise InputError(f"the line is longer than {MAX_LINE:,} bytes")


def _empty() -> Any:
    raise InputError("the file is empty")


def _document(file: BinaryIO) -> Iterator[Record]:
    """A record for each element of a list, or a single one. A document that is not JSON is one record that cannot be
    loaded."""
    text = file.read(MAX_DOCUMENT + 1)
    try:
        if len(text) > MAX_DOCUMENT:
            raise InputError(f"a document of more than {MAX_DOCUMENT:,} bytes; use one record per line (.jsonl)")
        if not text.strip():
            _empty()
        document = parse(text.removeprefix(_BOM))
    except InputError as error:
        reason = str(error)
        yield Record(0, None, lambda: _refuse(reason))
        return
    for number, value in enumerate(document if isinstance(document, list) else [document]):
        yield Record(number, None, lambda v=value: v)
    if document == []:
        yield Record(0, None, lambda: _refuse("an empty list"))


def _refuse(reason: str) -> Any:
    raise InputError(reason)

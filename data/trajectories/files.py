"""Read records from files: JSON lines, or one JSON document with a record or a list of records. Sizes are bounded."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from data.compression import open_data, split_ending
from data.finding import FoundFiles
from data.finding import find_files as find_in
from maverick_jax.errors import InputError
from maverick_jax.files import no_constant, once

LINES, DOCUMENTS = (".jsonl", ".ndjson"), (".json", ".traj")
MAX_LINE = 1 << 26
"""Longest line, in bytes."""
MAX_DOCUMENT = 1 << 28
"""Largest file with a single JSON document, in bytes; it is held in memory."""
_CHUNK = 1 << 20
_TABLES = {b"PAR1": "Parquet", b"ARROW1": "Arrow"}
"""The first bytes of files of tables, which are not read."""
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


def find_files(source: str | pathlib.Path) -> FoundFiles:
    """The files of trajectories at a path, and what is left out there, which is logged. Raises InputError if there are
    none."""
    path, endings = pathlib.Path(source).expanduser(), (*LINES, *DOCUMENTS)
    found = find_in(path, str(path), endings, endings)
    found.say(str(path))
    return found


def read_records(path: pathlib.Path, as_lines: bool | None = None) -> Iterator[Record]:
    """The records of one file; the caller parses each with `load`. `as_lines`: whether it holds JSON lines; None: its
    ending or its first line says so. Raises InputError if the file cannot be read."""
    try:
        is_lines = _is_lines(path) if as_lines is None else as_lines
        with open_data(path) as file:
            yield from _lines(file) if is_lines else _document(file)
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


def _is_lines(path: pathlib.Path) -> bool:
    """Whether the file holds JSON lines: by its ending, or, for an unknown ending and a compressed file that ends in
    .json, if its first line is an object. Raises InputError for a file of tables."""
    ending, compression = split_ending(path)
    if ending in LINES or (ending in DOCUMENTS and compression is None):
        return ending in LINES
    with open_data(path) as file:
        first = file.readline(MAX_LINE).removeprefix(_BOM).strip()
    for magic, name in _TABLES.items():
        if first.startswith(magic):
            raise InputError(f"{path}: {name} is not read as trajectories; write one JSON record per line (.jsonl)")
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

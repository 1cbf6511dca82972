"""Records of files: lines of JSON, or one JSON document with a record or a list of them. Bounded in size."""

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
"""Bytes of one record on a line."""
MAX_DOCUMENT = 1 << 28
"""Bytes of a file that is one JSON document, which is held in memory."""
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a file, not parsed yet."""

    number: int
    """Counted from 0."""
    line: int | None
    """Counted from 1; None in a file that is one document."""
    load: Callable[[], Any]
    """Its value. Raises InputError saying what is wrong with it."""


def find_files(source: str | pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder that names are relative to, and the files, sorted; hidden ones are left alone."""
    path = pathlib.Path(source).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        ends = (*LINES, *DOCUMENTS)
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in ends and p.is_file() and not _hidden(p, path))
        if not files:
            raise InputError(f"{path}: the folder holds no file that ends in {', '.join(ends)}")
        return path, files
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise InputError(f"{path}: no such file or folder{near}")


def read_records(path: pathlib.Path) -> Iterator[Record]:
    """The records of one file, each loaded by whoever takes it. Raises InputError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            yield from _lines(file) if _is_lines(path, file) else _document(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse(text: bytes, hint: str = "") -> Any:
    """Strict JSON. Raises InputError for all else: also NaN, keys given twice, deep nesting."""
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
    """By its ending; of other endings, a file whose first line is a whole object is one of lines."""
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
    hint = "" if text.endswith(b"\n") else " (the last line, without an end: the file may be truncated)"
    return lambda: parse(text, hint)


def _too_long() -> Any:
    raise InputError(f"the line is longer than {MAX_LINE:,} bytes")


def _empty() -> Any:
    raise InputError("the file is empty")


def _document(file: BinaryIO) -> Iterator[Record]:
    """A record per element of a list, else one; a document that is no JSON is one record that cannot be loaded."""
    text = file.read(MAX_DOCUMENT + 1)
    try:
        if len(text) > MAX_DOCUMENT:
            raise InputError(f"longer than {MAX_DOCUMENT:,} bytes in one document; give one record a line (.jsonl)")
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

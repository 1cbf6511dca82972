"""Documents out of files, and documents made up from a seed.

A source is a list of parts (files); a part yields its documents in order. Every defect of a file becomes one
InputError that names the file and the record or line.
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from data.config import SourceConfig
from data.order import derive
from data.trajectories.files import DOCUMENTS, LINES
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text import Tokenizer

SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}
RUN_SUFFIXES = (*LINES, *DOCUMENTS)
ASSETS = pathlib.Path(__file__).resolve().parent / "assets"
PACKAGE = "package:"
_BATCH = 1024
_BOM = b"\xef\xbb\xbf"


class Document(NamedTuple):
    where: str
    """File and record or line, for messages."""
    content: str | np.ndarray
    """Text, or token ids where the source makes those."""


class Part(Protocol):
    """A piece of a source that is tokenised in one go."""

    @property
    def label(self) -> str: ...

    def identity(self) -> list[str | int]:
        """What changes when the documents may have changed."""
        ...

    def documents(self) -> Iterator[Document]: ...


def open_source(name: str, config: SourceConfig, tokenizer: Tokenizer) -> list[Part]:
    """The parts of source `name`, in the order they are read. Raises InputError for a path that leads nowhere."""
    if config.synthetic:
        return [SyntheticPart(name, config, tokenizer)]
    return [FilePart(path, config) for given in config.paths for path in files_of(name, given, config)]


class FilePart:
    """One file."""

    def __init__(self, path: pathlib.Path, config: SourceConfig):
        self.path, self.config = path, config
        self.format = config.format or _format_of(path)
        if config.split_on is not None and self.format != "text":
            raise InputError(f"{path}: split_on is for text; this file is {self.format}")

    @property
    def label(self) -> str:
        return str(self.path)

    def identity(self) -> list[str | int]:
        stat = self.path.stat()
        options = [self.config.split_on or ""] if self.format == "text" else [self.config.field or ""]
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns, self.format, *options]

    def documents(self) -> Iterator[Document]:
        try:
            if self.path.stat().st_size == 0:
                raise InputError(f"{self.path}: the file is empty; expected {self.format}")
            yield from _READERS[self.format](self.path, self.config)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error}") from None


class SyntheticPart:
    """Documents of token ids, made up."""

    def __init__(self, name: str, config: SourceConfig, tokenizer: Tokenizer):
        self.label, self.config = f"{name} (synthetic)", config
        controls = set(tokenizer.controls.values())
        room = tokenizer.vocab_size - len(controls)
        if config.symbols > room:
            raise InputError(f"data.sources.{name}.symbols: {config.symbols} is more than the {room} ordinary tokens "
                             f"of tokenizer {tokenizer.name}")  # fmt: skip
        ordinary = (i for i in range(tokenizer.vocab_size) if i not in controls)
        self.alphabet = np.array([next(ordinary) for _ in range(config.symbols)], np.int32)

    def identity(self) -> list[str | int]:
        c = self.config
        return ["synthetic", c.pattern, c.documents, c.length, c.symbols, c.corpus_seed]

    def documents(self) -> Iterator[Document]:
        for number in range(self.config.documents):
            yield Document(f"{self.label}: document {number}", self.alphabet[self._symbols(number)])

    def _symbols(self, number: int) -> np.ndarray:
        c = self.config
        # The legacy generator is the one whose streams are promised to stay the same in all versions of NumPy.
        random = np.random.RandomState(derive(c.corpus_seed, "synthetic", number) % 2**32)
        length = random.randint((c.length + 1) // 2, c.length + c.length // 2 + 1)
        if c.pattern == "random":
            return random.randint(0, c.symbols, length)
        start, step = random.randint(0, c.symbols), random.randint(1, c.symbols)
        return (start + step * np.arange(length)) % c.symbols


# ---- which files ---------------------------------------------------------------------------------------------------


def files_of(name: str, given: str, config: SourceConfig) -> list[pathlib.Path]:
    """The files that `given` (file, folder, glob or package:NAME) means, sorted."""
    if given.startswith(PACKAGE):
        return [_shipped(given.removeprefix(PACKAGE))]
    path = pathlib.Path(given).expanduser()
    where = f"data.sources.{name}.path: {given}"
    if path.is_file():
        return [path]
    if path.is_dir():
        wanted = {s for s, f in SUFFIXES.items() if config.format in (None, f)} | set(
            RUN_SUFFIXES if config.runs else ()
        )
        found = sorted(
            p for p in path.rglob("*") if p.suffix.lower() in wanted and p.is_file() and not _hidden(p, path)
        )
        if not found:
            raise InputError(f"{where}: the folder holds no file that ends in {', '.join(sorted(wanted))}")
        return found
    if any(c in given for c in "*?["):
        anchor = pathlib.Path(path.anchor) if path.is_absolute() else pathlib.Path()
        found = sorted(p for p in anchor.glob(str(path.relative_to(path.anchor))) if p.is_file())
        if not found:
            raise InputError(f"{where}: no file matches")
        return found
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    raise InputError(f"{where}: no such file or folder (looked in {path.parent.absolute()}){near}")


def _hidden(path: pathlib.Path, folder: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _shipped(name: str) -> pathlib.Path:
    names = {path.stem: path for path in ASSETS.iterdir() if path.suffix in SUFFIXES and path.name != "README.md"}
    if name not in names:
        raise InputError(f"{PACKAGE}{name}: no such text is shipped{did_you_mean(name, names)} "
                         f"(known: {', '.join(sorted(names))})")  # fmt: skip
    return names[name]


def _format_of(path: pathlib.Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: cannot tell the format from the ending {path.suffix!r}; set `format` "
                         f"(known endings: {', '.join(SUFFIXES)})")  # fmt: skip
    return SUFFIXES[path.suffix.lower()]


# ---- one reader per format -----------------------------------------------------------------------------------------


def _read_text(path: pathlib.Path, config: SourceConfig) -> Iterator[Document]:
    content = path.read_bytes().removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8 (byte {error.start}: {error.reason}); the file is truncated "
                         "or in another encoding")  from None  # fmt: skip
    if config.split_on is None:
        yield Document(str(path), text)
        return
    for number, document in enumerate(text.split(config.split_on)):
        yield Document(f"{path}: document {number}", document)


def _read_jsonl(path: pathlib.Path, config: SourceConfig) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                where = f"{path}: line {number}"
                hint = "" if line.endswith(b"\n") else " (the last line, without an end: the file may be truncated)"
                yield Document(where, _json_text(line, where, config.field, hint))


def _json_text(record: bytes, where: str, field: str | None, hint: str = "") -> str:
    try:
        value = json.loads(record)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason}{hint}") from None
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}{hint}") from None
    except RecursionError:
        raise InputError(f"{where}: JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object with {field!r}, got {type(value).__name__}")
    if field not in value:
        raise InputError(f"{where}: no field {field!r}{did_you_mean(str(field), value)} (fields: {_listed(value)})")
    if not isinstance(value[field], str):
        raise InputError(f"{where}: field {field!r} holds {type(value[field]).__name__}; expected text")
    return value[field]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _listed(names) -> str:
    return ", ".join(str(n)[:40] for n in list(names)[:12]) or "none"


def _read_parquet(path: pathlib.Path, config: SourceConfig) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    field, row = config.field, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in (names := file.schema_arrow.names):
                raise InputError(f"{path}: no column {field!r}{did_you_mean(str(field), names)} (columns: "
                                 f"{_listed(names)})")  # fmt: skip
            for batch in file.iter_batches(batch_size=_BATCH, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        kind = "null" if text is None else type(text).__name__
                        raise InputError(f"{path}: row {row}: column {field!r} holds {kind}; expected text")
                    yield Document(f"{path}: row {row}", text)
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: row {row} or later: damaged, truncated or not Parquet: {_first_line(error)}"
        ) from None


def _read_array_record(path: pathlib.Path, config: SourceConfig) -> Iterator[Document]:
    from array_record.python.array_record_module import ArrayRecordReader

    number = 0
    try:
        reader = ArrayRecordReader(str(path))
        if not reader.ok() or reader.num_records() == 0:
            raise InputError(f"{path}: no record can be read: damaged, truncated or not ArrayRecord")
        for begin in range(0, reader.num_records(), _BATCH):
            for record in reader.read(range(begin, min(begin + _BATCH, reader.num_records()))):
                where = f"{path}: record {number}"
                yield Document(where, _record_text(record, where, config.field))
                number += 1
        reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: record {number} or later: damaged, truncated or not ArrayRecord: {_first_line(error)}"
        ) from None


def _record_text(record: bytes, where: str, field: str | None) -> str:
    if field is not None:
        return _json_text(record, where, field, " (field: null reads records that are the text itself)")
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason}") from None


_READERS: dict[str, Callable[[pathlib.Path, SourceConfig], Iterator[Document]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "array_record": _read_array_record,
}

"""Sources that are files: they find files by path and report unreadable ones."""

import abc
import dataclasses
import json
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Annotated, Any, ClassVar

import pydantic

from data.finding import FoundFiles, find_files
from data.sources.base import DocumentSource, SourceConfig, SourceDocument, SourcePart
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text import Tokenizer

ASSETS = pathlib.Path(__file__).resolve().parent.parent / "assets"
PACKAGE = "package:"
BOM = b"\xef\xbb\xbf"


def _not_null(field: Any) -> Any:
    if field is None:
        raise ValueError("null (the record itself is the text) requires format: array_record")
    return field


Named = Annotated[str, pydantic.BeforeValidator(_not_null)]
"""The key or column of a document's text."""


class PathSource(SourceConfig):
    """The base of sources that are read from `path`."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of the files that are read from a folder."""
    compressed_suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings that files in a folder may have before that of a compression, such as `.gz`."""

    path: str | list[str] | None = None
    """A file, a folder (searched recursively), a glob, or a list of these. Files may be compressed (.gz, .bz2, .xz,
    .zst). `package:NAME` is a file shipped with maverick-jax, such as `package:tinyshakespeare`."""

    @pydantic.model_validator(mode="after")
    def _has_a_path(self):
        if not self.path:
            raise ValueError("set `path` (file, folder, glob, list of these or package:NAME) or `kind: synthetic`")
        return self

    def files(self, name: str) -> list[pathlib.Path]:
        """The files of this source, which the config calls `name`; logs what is left out. Raises InputError for a path
        that does not exist."""
        found = self.found(name)
        for files in found:
            files.say(f"data.sources.{name}.path: {files.root}")
        return [file for files in found for file in files.files]

    def found(self, name: str) -> list[FoundFiles]:
        """The files at each path, and what is left out there. Raises as `files`."""
        given = [self.path] if isinstance(self.path, str) else self.path or []
        return [find_source_files(name, path, self.suffixes, self.compressed_suffixes) for path in given]


class DocumentFiles(PathSource, DocumentSource):
    """The base of sources whose files contain documents."""

    def parts(self, name: str, tokenizer: Tokenizer) -> list[SourcePart]:
        return [self.part(path) for path in self.files(name)]

    @abc.abstractmethod
    def part(self, path: pathlib.Path) -> SourcePart:
        """The documents of one file."""


@dataclasses.dataclass(frozen=True)
class FilePart:
    """One file of documents."""

    path: pathlib.Path
    kind: str
    """Kind of the source that reads such files."""
    option: str | None
    """The field or separator that `read` gets."""
    read: Callable[[pathlib.Path, str | None], Iterator[SourceDocument]]
    """(path, option) -> documents."""

    @property
    def label(self) -> str:
        return str(self.path)

    def identity(self) -> list[str | int]:
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns, self.kind, self.option or ""]

    def documents(self) -> Iterator[SourceDocument]:
        try:
            if self.path.stat().st_size == 0:
                raise InputError(f"{self.path}: the file is empty; expected {self.kind}")
            yield from self.read(self.path, self.option)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error}") from None


# ---- which files ---------------------------------------------------------------------------------------------------


def find_source_files(
    name: str, given: str, suffixes: Collection[str], compressed_suffixes: Collection[str] = ()
) -> FoundFiles:
    """The sorted files at `given`, which is a file, a folder, a glob or package:NAME. A folder gives its files that end
    in one of `suffixes`, or compressed ones of `compressed_suffixes`. `name`: the source's name, for messages. Raises
    InputError if there is no file."""
    if given.startswith(PACKAGE):
        return FoundFiles(ASSETS, [shipped_file(given.removeprefix(PACKAGE))])
    path = pathlib.Path(given).expanduser()
    where = f"data.sources.{name}.path: {given}"
    if not path.exists() and any(c in given for c in "*?["):
        anchor = pathlib.Path(path.anchor) if path.is_absolute() else pathlib.Path()
        matches = sorted(anchor.glob(str(path.relative_to(path.anchor))))
        files = [p for p in matches if p.is_file()]
        if not files:
            raise InputError(f"{where}: no file matches")
        others = {f"{p}/" if p.is_dir() else str(p): "not a file" for p in matches if not p.is_file()}
        return FoundFiles(pathlib.Path(given), files, others if "**" not in given else {})
    return find_files(path, where, suffixes, compressed_suffixes)


def shipped_file(name: str) -> pathlib.Path:
    """The file of `package:NAME`. Raises InputError with the most similar name if there is none."""
    names = {
        path.name.partition(".")[0]: path for path in ASSETS.iterdir() if path.is_file() and path.name != "README.md"
    }
    if name not in names:
        raise InputError(f"{PACKAGE}{name}: no shipped file has this name{did_you_mean(name, names)} "
                         f"(known: {', '.join(sorted(names))})")  # fmt: skip
    return names[name]


# ---- for readers ---------------------------------------------------------------------------------------------------


def text_of_json(record: bytes, where: str, field: str | None, hint: str = "") -> str:
    """The text under the key `field` of a JSON object. Raises an InputError that starts with `where`."""
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
        raise InputError(f"{where}: no field {field!r}{did_you_mean(str(field), value)} (fields: {listed(value)})")
    if not isinstance(value[field], str):
        raise InputError(f"{where}: field {field!r} is {type(value[field]).__name__}; expected text")
    return value[field]


def listed(names: Iterable[object]) -> str:
    """The first names, shortened, for a message."""
    return ", ".join(str(n)[:40] for n in list(names)[:12]) or "none"

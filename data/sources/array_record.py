"""ArrayRecord files: one document per record. A record is a JSON object or the text itself."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.compression import first_line, require_plain
from data.sources.base import SourceDocument
from data.sources.files import DocumentFiles, FilePart, text_of_json
from maverick_jax.errors import InputError

_BATCH = 1024
"""Records in memory at a time."""


class ArrayRecordSource(DocumentFiles):
    """`kind: array_record`: ArrayRecord files."""

    suffixes: ClassVar = (".array_record", ".arrayrecord")

    kind: Literal["array_record"] = "array_record"
    """ArrayRecord."""
    format: Annotated[Literal["array_record"], Field(exclude=True)] = "array_record"
    """The same as `kind: array_record`."""
    field: str | None = "text"
    """Key of the document's text in each record, a JSON object. null: the record itself is the text."""

    def part(self, path: pathlib.Path) -> FilePart:
        return FilePart(path, self.kind, self.field, read_array_record)


def read_array_record(path: pathlib.Path, field: str | None) -> Iterator[SourceDocument]:
    from array_record.python.array_record_module import ArrayRecordReader

    require_plain(path, "ArrayRecord")
    number, reader = 0, None
    try:
        reader = ArrayRecordReader(str(path))
        if not reader.ok() or reader.num_records() == 0:
            raise InputError(f"{path}: no record can be read: damaged, truncated or not ArrayRecord")
        for begin in range(0, reader.num_records(), _BATCH):
            for record in reader.read(range(begin, min(begin + _BATCH, reader.num_records()))):
                where = f"{path}: record {number}"
                yield SourceDocument(where, _text_of(record, where, field))
                number += 1
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path}: record {number} or later: damaged, truncated or not ArrayRecord: {first_line(error)}"
        ) from None
    finally:
        if reader is not None:
            with contextlib.suppress(RuntimeError):  # of a damaged file
                reader.close()


def _text_of(record: bytes, where: str, field: str | None) -> str:
    if field is not None:
        return text_of_json(record, where, field, " (set `field: null` if each record is the text itself)")
    try:
        return record.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason}") from None

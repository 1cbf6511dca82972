"""JSON lines: one document per line, under a key of its object."""

import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.compression import MAX_LINE, open_data
from data.sources.base import SourceDocument
from data.sources.files import BOM, DocumentFiles, FilePart, Named, text_of_json
from maverick_jax.errors import InputError


class JsonlSource(DocumentFiles):
    """`kind: jsonl`: files with one JSON object per line."""

    suffixes: ClassVar = (".jsonl", ".ndjson")
    compressed_suffixes: ClassVar = (*suffixes, ".json")  # public corpora call their compressed JSON lines .json.gz

    kind: Literal["jsonl"] = "jsonl"
    """JSON lines."""
    format: Annotated[Literal["jsonl"], Field(exclude=True)] = "jsonl"
    """The same as `kind: jsonl`."""
    field: Named = "text"
    """Key of the document's text in each object."""

    def part(self, path: pathlib.Path) -> FilePart:
        return FilePart(path, self.kind, self.field, read_jsonl)


def read_jsonl(path: pathlib.Path, field: str | None) -> Iterator[SourceDocument]:
    with open_data(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise InputError(f"{path}: line {number}: longer than {MAX_LINE:,} bytes")
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                where = f"{path}: line {number}"
                hint = "" if line.endswith(b"\n") else " (the last line has no line end: the file may be truncated)"
                yield SourceDocument(where, text_of_json(line, where, field, hint))

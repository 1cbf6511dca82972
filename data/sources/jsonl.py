"""JSON lines: one document per line, under a key of its object."""

import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.sources.base import SourceDocument
from data.sources.files import BOM, DocumentFiles, FilePart, Named, text_of_json


class JsonlSource(DocumentFiles):
    """`kind: jsonl`: files with one JSON object per line."""

    suffixes: ClassVar = (".jsonl", ".ndjson")

    kind: Literal["jsonl"] = "jsonl"
    """JSON lines."""
    format: Annotated[Literal["jsonl"], Field(exclude=True)] = "jsonl"
    """The same as `kind: jsonl`."""
    field: Named = "text"
    """Key of the document's text in each object."""

    def part(self, path: pathlib.Path) -> FilePart:
        return FilePart(path, self.kind, self.field, read_jsonl)


def read_jsonl(path: pathlib.Path, field: str | None) -> Iterator[SourceDocument]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                where = f"{path}: line {number}"
                hint = "" if line.endswith(b"\n") else " (the last line has no line end: the file may be truncated)"
                yield SourceDocument(where, text_of_json(line, where, field, hint))

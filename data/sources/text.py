"""Text files: one document per file, or several with a separator between them."""

import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.compression import read_whole
from data.sources.base import SourceDocument
from data.sources.files import BOM, DocumentFiles, FilePart
from maverick_jax.errors import InputError


class TextSource(DocumentFiles):
    """`kind: text`: files of plain text in UTF-8."""

    suffixes: ClassVar = (".txt", ".text", ".md")
    compressed_suffixes: ClassVar = suffixes

    kind: Literal["text"] = "text"
    """Plain text."""
    format: Annotated[Literal["text"], Field(exclude=True)] = "text"
    """The same as `kind: text`."""
    split_on: Annotated[str, Field(min_length=1)] | None = None
    """The string between documents, which is part of no document. null: one document per file."""

    def part(self, path: pathlib.Path) -> FilePart:
        return FilePart(path, self.kind, self.split_on, read_text)


def read_text(path: pathlib.Path, split_on: str | None) -> Iterator[SourceDocument]:
    content = read_whole(path).removeprefix(BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8 (byte {error.start}: {error.reason}); the file is truncated "
                         "or in another encoding")  from None  # fmt: skip
    if split_on is None:
        yield SourceDocument(str(path), text)
        return
    for number, document in enumerate(text.split(split_on)):
        yield SourceDocument(f"{path}: document {number}", document)

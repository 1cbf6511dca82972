"""Files of documents whose endings determine their formats."""

import pathlib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.compression import split_ending
from data.sources.array_record import ArrayRecordSource
from data.sources.files import DocumentFiles, FilePart, Named
from data.sources.jsonl import JsonlSource
from data.sources.parquet import ParquetSource
from data.sources.text import TextSource
from maverick_jax.errors import InputError

_KINDS = {suffix: kind for kind in (TextSource, JsonlSource, ParquetSource, ArrayRecordSource)
          for suffix in kind.suffixes}  # fmt: skip
_COMPRESSED = {suffix: kind for kind in (TextSource, JsonlSource) for suffix in kind.compressed_suffixes}


class FilesSource(DocumentFiles):
    """`kind: files`: files of documents; the ending of each file determines its format."""

    suffixes: ClassVar = tuple(_KINDS)
    compressed_suffixes: ClassVar = tuple(_COMPRESSED)

    kind: Literal["files"] = "files"
    """The format follows from each file's ending: .txt, .md (text), .jsonl, .parquet, .array_record. Text and JSON
    lines may be compressed: .txt.gz, .jsonl.zst, .json.gz."""
    format: Annotated[None, Field(exclude=True)] = None
    """The same as `kind: files`."""
    field: Named = "text"
    """Key or column of a document's text, in formats that have keys or columns."""
    split_on: Annotated[str, Field(min_length=1)] | None = None
    """For text files: the string between documents, which is part of no document. null: one document per file."""

    def part(self, path: pathlib.Path) -> FilePart:
        ending, compression = split_ending(path)
        kinds = _KINDS if compression is None else _COMPRESSED
        if ending not in kinds:
            what = f"no format has the ending {path.suffix!r}"
            if compression is not None:
                what = f"compressed with {compression}, and no format that is read so has the ending {ending!r}"
            raise InputError(f"{path}: {what}; set `format` (known endings: {', '.join(kinds)})")
        kind = kinds[ending]
        if self.split_on is not None and kind is not TextSource:
            raise InputError(f"{path}: split_on is only for text; this file is {kind.model_fields['kind'].default}")
        option = {"split_on": self.split_on} if kind is TextSource else {"field": self.field}
        return kind.model_validate({"path": str(path), **option}).part(path)

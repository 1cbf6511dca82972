"""Parquet files: one document per row, in a column."""

import pathlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from data.compression import first_line, require_plain
from data.sources.base import SourceDocument
from data.sources.files import DocumentFiles, FilePart, Named, listed
from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean

_BATCH = 1024
"""Number of table rows in memory at a time."""


class ParquetSource(DocumentFiles):
    """`kind: parquet`: Parquet files with a column of texts."""

    suffixes: ClassVar = (".parquet",)

    kind: Literal["parquet"] = "parquet"
    """Parquet."""
    format: Annotated[Literal["parquet"], Field(exclude=True)] = "parquet"
    """The same as `kind: parquet`."""
    field: Named = "text"
    """Column of the documents' texts."""

    def part(self, path: pathlib.Path) -> FilePart:
        return FilePart(path, self.kind, self.field, read_parquet)


def read_parquet(path: pathlib.Path, field: str | None) -> Iterator[SourceDocument]:
    import pyarrow
    import pyarrow.parquet

    require_plain(path, "Parquet")
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if field not in (names := file.schema_arrow.names):
                raise InputError(f"{path}: no column {field!r}{did_you_mean(str(field), names)} (columns: "
                                 f"{listed(names)})")  # fmt: skip
            for batch in file.iter_batches(batch_size=_BATCH, columns=[field]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        found = "null" if text is None else type(text).__name__
                        raise InputError(f"{path}: row {row}: column {field!r} is {found}; expected text")
                    yield SourceDocument(f"{path}: row {row}", text)
                    row += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: row {row} or later: damaged, truncated or not Parquet: {first_line(error)}"
        ) from None

"""Sources of documents and trajectories: one file per kind, chosen by `data.sources.NAME.kind`."""

from typing import Annotated, Any

import pydantic
from pydantic_core import InitErrorDetails

from data.sources.array_record import ArrayRecordSource
from data.sources.base import DocumentSource, SourceConfig, SourceDocument, SourcePart
from data.sources.by_suffix import FilesSource
from data.sources.jsonl import JsonlSource
from data.sources.parquet import ParquetSource
from data.sources.synthetic import SyntheticSource
from data.sources.text import TextSource
from data.sources.trajectories import TrajectoriesConfig, TrajectoriesSource
from maverick_jax.settings.kinds import Kinds

__all__ = [
    "SOURCES",
    "AnySource",
    "DocumentSource",
    "SourceConfig",
    "SourceDocument",
    "SourcePart",
    "TrajectoriesConfig",
    "TrajectoriesSource",
]

SOURCES = Kinds("data source", SourceConfig, default="files")
for _kind in (FilesSource, TextSource, JsonlSource, ParquetSource, ArrayRecordSource, TrajectoriesSource,
              SyntheticSource):  # fmt: skip
    SOURCES.register(_kind)


def _with_kind(section: Any) -> Any:
    """Adds `kind` to a section without one: its `format`, or else `files`."""
    if not isinstance(section, dict):
        return section
    section = {"kind": SOURCES.default, **section}
    if section.get("format", "") is None:
        del section["format"]
    if section["kind"] != SOURCES.default or "format" not in section:
        return section
    formats = [kind for kind in SOURCES.members if kind != SOURCES.default]
    if section["format"] not in formats:
        expected = " or ".join(map(repr, formats))
        error = InitErrorDetails(
            type="literal_error", loc=("format",), input=section["format"], ctx={"expected": expected}
        )
        raise pydantic.ValidationError.from_exception_data("source", [error])
    return {**section, "kind": section["format"]}


AnySource = Annotated[SourceConfig, SOURCES, pydantic.BeforeValidator(_with_kind)]

"""What rows are made of: one file per kind of source, chosen by `data.sources.NAME.kind`."""

from typing import Annotated, Any, get_args

import pydantic
from pydantic import BeforeValidator, Field

from data.sources.array_record import ArrayRecordSource
from data.sources.base import DocumentSource, SourceConfig, SourceDocument, SourcePart
from data.sources.by_suffix import FilesSource
from data.sources.jsonl import JsonlSource
from data.sources.parquet import ParquetSource
from data.sources.synthetic import SyntheticSource
from data.sources.text import TextSource
from data.sources.trajectories import TrajectoriesConfig, TrajectoriesSource

__all__ = [
    "AnySource",
    "DocumentSource",
    "SourceConfig",
    "SourceDocument",
    "SourcePart",
    "TrajectoriesConfig",
    "TrajectoriesSource",
]

_Kinds = (
    FilesSource
    | TextSource
    | JsonlSource
    | ParquetSource
    | ArrayRecordSource
    | TrajectoriesSource
    | SyntheticSource
)  # fmt: skip
_FORMATS = [kind.model_fields["kind"].default for kind in get_args(_Kinds) if kind is not FilesSource]


def _with_kind(section: Any) -> Any:
    """A section that does not say its kind is about files, of which `format` may say the kind."""
    if not isinstance(section, dict):
        return section
    section = {"kind": "files", **section}
    if section.get("format", "") is None:
        del section["format"]
    if section["kind"] != "files" or "format" not in section:
        return section
    if section["format"] not in _FORMATS:
        expected = " or ".join(map(repr, _FORMATS))
        error = {"type": "literal_error", "loc": ("format",), "input": section["format"], "ctx": {"expected": expected}}
        raise pydantic.ValidationError.from_exception_data("source", [error])
    return {**section, "kind": section["format"]}


AnySource = Annotated[_Kinds, Field(discriminator="kind"), BeforeValidator(_with_kind)]

"""Sources of documents and trajectories: one file per kind, chosen by `data.sources.NAME.kind`."""

from typing import Annotated, Any

import pydantic
from pydantic_core import InitErrorDetails

from data.sources.array_record import ArrayRecordSource
from data.sources.base import DocumentSource, MadeSource, SourceConfig, SourceDocument, SourcePart
from data.sources.by_suffix import FilesSource
from data.sources.chain import ChainSource
from data.sources.drawn_pictures import DrawnPicturesSource
from data.sources.jsonl import JsonlSource
from data.sources.parquet import ParquetSource
from data.sources.pictures import PictureSource, PicturesSource
from data.sources.preferences import PreferencesConfig, PreferencesSource
from data.sources.retrieval import RetrievalSource
from data.sources.synthetic import SyntheticSource
from data.sources.text import TextSource
from data.sources.trajectories import TrajectoriesConfig, TrajectoriesSource
from data.trajectories.formats import FORMATS
from maverick_jax.settings.kinds import Kinds

__all__ = [
    "SOURCES",
    "AnySource",
    "DocumentSource",
    "MadeSource",
    "PictureSource",
    "PicturesSource",
    "PreferencesConfig",
    "PreferencesSource",
    "SourceConfig",
    "SourceDocument",
    "SourcePart",
    "TrajectoriesConfig",
    "TrajectoriesSource",
]

SOURCES = Kinds("data source", SourceConfig, default="files")
for _kind in (FilesSource, TextSource, JsonlSource, ParquetSource, ArrayRecordSource, TrajectoriesSource,
              PicturesSource, DrawnPicturesSource, PreferencesSource, SyntheticSource, ChainSource,
              RetrievalSource):  # fmt: skip
    SOURCES.register(_kind)


def _with_kind(section: Any) -> Any:
    """Adds `kind` to a section without one: its `format`, or else `files`."""
    if not isinstance(section, dict):
        return section
    section = {"kind": SOURCES.default, **section}
    if section["kind"] == PicturesSource.model_fields["kind"].default:
        return section  # its `format` is that of its records
    for key in ("kind", "format"):
        _refuse_trajectory_format(key, section.get(key))
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


def _refuse_trajectory_format(key: str, name: Any) -> None:
    """Raises pydantic's error if `name`, the value of `key` of a source, is a format of trajectories."""
    plain = name.lower().replace("-", "_") if isinstance(name, str) else None
    if plain not in FORMATS or name in SOURCES.members:
        return
    why = f"{plain} is a format of trajectories; use {key}: trajectories, which finds it by itself"
    error = InitErrorDetails(type="value_error", loc=(key,), input=name, ctx={"error": ValueError(why)})
    raise pydantic.ValidationError.from_exception_data("source", [error])


AnySource = Annotated[SourceConfig, SOURCES, pydantic.BeforeValidator(_with_kind)]

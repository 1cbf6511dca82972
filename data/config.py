"""The `data` section of a run's config."""

import os
import pathlib
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from maverick_jax.section import Section

CACHE_VARIABLE = "MAVERICK_CACHE"
Positive = Annotated[int, Field(ge=1)]
Format = Literal["text", "jsonl", "parquet", "array_record", "synthetic"]


class SourceConfig(Section):
    """One corpus: files of one format, or documents made up from a seed."""

    kind: Literal["files", "synthetic"] = "files"
    """`files` are read from `path`; `synthetic` needs none."""
    path: str | list[str] | None = None
    """A file, a folder (searched in depth), a glob, or a list of these. `package:NAME` is a text shipped with
    maverick-jax, such as `package:tinyshakespeare`."""
    format: Format | None = None
    """How the files are written; null: by suffix. `text`: one document per file; `jsonl`: one JSON object per line;
    `parquet`: one document per row; `array_record`: one per record; `synthetic`: the same as `kind: synthetic`."""
    field: str | None = "text"
    """Key (jsonl, array_record) or column (parquet) that holds a document's text. null: the record itself is the
    text (array_record only)."""
    split_on: Annotated[str, Field(min_length=1)] | None = None
    """For `text`: documents end at this string, which belongs to none of them. null: one document per file."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the rows, relative to the weights of the other sources."""
    pattern: Literal["cycle", "random"] = "cycle"
    """For `synthetic`. `cycle`: each document counts up from a random symbol by a random step, so that all but the
    first two tokens can be learnt; `random`: independent uniform symbols."""
    documents: Positive = 256
    """For `synthetic`: number of documents."""
    length: Annotated[int, Field(ge=2)] = 1024
    """For `synthetic`: mean length of a document, in tokens; lengths are uniform from half of it to one and a half."""
    symbols: Annotated[int, Field(ge=2)] = 64
    """For `synthetic`: number of different tokens, ids 0 to symbols - 1."""
    corpus_seed: Annotated[int, Field(ge=0)] = 0
    """For `synthetic`: which documents are made up; the order they are read in follows the run's seed."""

    @property
    def synthetic(self) -> bool:
        return self.kind == "synthetic" or self.format == "synthetic"

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else tuple(self.path or ())

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.synthetic and (self.path is not None or self.format not in (None, "synthetic")):
            raise ValueError("a synthetic source takes no path and no format of files")
        if not self.synthetic and not self.paths:
            raise ValueError("needs `path` (file, folder, glob, list of them or package:NAME) or `kind: synthetic`")
        if self.split_on is not None and self.format not in (None, "text"):
            raise ValueError(f"split_on is for format text; this source is {self.format}")
        if self.field is None and self.format != "array_record":
            raise ValueError("field: null (the record itself is the text) needs format: array_record")
        return self


class DataConfig(Section):
    """What is trained on, in which order, in rows of which length."""

    sources: Annotated[dict[str, SourceConfig], Field(min_length=1)]
    """Corpora by name, mixed by weight."""
    batch_size: Positive = 8
    """Sequences per optimizer step, in the whole job."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens per sequence, T."""
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    """`bytes`, or the path of a `tokenizer.json`, of a tiktoken `tokenizer.model`, or of a folder with one of them."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """`concatenate`: documents end to end, cut every `sequence_length` tokens, no padding; `best_fit`: documents kept
    whole where they fit, placed in the row they fill best, the rest padding."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Part of each source's tokens, from its end, that is kept for evaluation and never trained on. A source of
    several documents is cut between two of them."""
    shuffle: bool = True
    """Documents in random order, and rows in another random order each epoch. false: as in the files. Held-out
    rows are never shuffled."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the order. null: `run.seed`."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes that assemble batches; 0: threads of the training process. Changes no batch."""
    prefetch: Positive = 2
    """Batches kept ready, per worker process if there are any."""
    cache_dir: str | None = None
    """Where tokenised sources are kept. null: environment variable MAVERICK_CACHE, or else ~/.cache/maverick-jax."""

    @pydantic.field_validator("sources")
    @classmethod
    def _names(cls, sources):
        for name in sources:
            if not name.strip():
                raise ValueError("a source's name must not be empty")
        return sources

    @property
    def cache(self) -> pathlib.Path:
        """The cache folder, which may not exist yet."""
        chosen = self.cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/maverick-jax"
        return pathlib.Path(chosen).expanduser().absolute()

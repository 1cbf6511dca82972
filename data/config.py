"""The `data` section of a run's config."""

import os
import pathlib
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from data.trajectories.filters.config import FilterConfig, ScrubConfig
from data.trajectories.weights import KindWeights, OutcomeWeights
from maverick_jax.settings.section import Section

CACHE_VARIABLE = "MAVERICK_CACHE"
Positive = Annotated[int, Field(ge=1)]
RUNS = "trajectories"
Format = Literal["text", "jsonl", "parquet", "array_record", "trajectories", "synthetic"]


class TrajectoriesConfig(Section):
    """How agent runs are read, written and cut."""

    format: Literal["ours", "openai", "tau_bench", "swe_agent", "sharegpt", "atif", "adp"] | None = None
    """Of the files; null: each file's first record tells."""
    dialect: Literal["meta_pythonic", "meta_json", "hugging_face"] | None = None
    """How tools are written; null: as the tokenizer's model does, or else meta_pythonic."""
    tools: str | None = None
    """A JSON file that declares the tools, for runs that do not."""
    unknown: Literal["keep", "refuse"] = "keep"
    """Whether fields without a meaning here make a record malformed."""
    malformed: Literal["stop", "skip"] = "stop"
    """What a malformed record does: `stop` ends with an error; `skip` leaves it out, logged and counted."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.25
    """Of runs longer than a row: part of a window, beside system message and tools, for turns before the cut, which are
    read again and not learnt again."""
    outcomes: OutcomeWeights = OutcomeWeights()
    """Weights of whole runs by how they ended."""
    balance_decisions: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """Where a turn decides to call, to answer or to ask: weight times a factor that is inverse to how many turns to
    train on decide so, this much at most, its mean over these turns 1. null: as many as there are."""
    filter: FilterConfig | None = None
    """Which runs are left out; null: none."""
    scrub: ScrubConfig | None = None
    """What personal data is replaced; null: none."""


class SourceConfig(Section):
    """One corpus: files of one format, or documents made up from a seed."""

    kind: Literal["files", "synthetic"] = "files"
    """`files` are read from `path`; `synthetic` needs none."""
    path: str | list[str] | None = None
    """A file, a folder (searched in depth), a glob, or a list of these. `package:NAME` is a text shipped with
    maverick-jax, such as `package:tinyshakespeare`."""
    format: Format | None = None
    """How the files are written; null: by suffix. `text`: one document per file; `jsonl`: one JSON object per line;
    `parquet`: one document per row; `array_record`: one per record; `trajectories`: agent runs; `synthetic`: the same
    as `kind: synthetic`."""
    field: str | None = "text"
    """Key (jsonl, array_record) or column (parquet) that holds a document's text. null: the record itself is the
    text (array_record only)."""
    split_on: Annotated[str, Field(min_length=1)] | None = None
    """For `text`: documents end at this string, which belongs to none of them. null: one document per file."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Share of the rows, relative to the weights of the other sources."""
    held_out_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """As `data.held_out_fraction`, of this source. 1: all of it is for evaluation, so that files of their own can be;
    0: none. null: as all."""
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
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    """For `trajectories`."""

    @property
    def synthetic(self) -> bool:
        return self.kind == "synthetic" or self.format == "synthetic"

    @property
    def runs(self) -> bool:
        return self.format == RUNS

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
        if self.trajectories != TrajectoriesConfig() and not self.runs:
            raise ValueError(f"trajectories: is for format: {RUNS}; this source's is {self.format or 'told by suffix'}")
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
    whole where they fit, placed in the row they fill best, the rest padding. Of texts: agent runs are always best
    fitted, and cut at turn borders where they do not fit."""
    kind_weights: KindWeights = KindWeights()
    """Loss weight of each token of agent runs, by what it is."""
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

    @pydantic.model_validator(mode="after")
    def _weighs_something(self):
        if self.kind_weights != KindWeights() and not self.runs:
            raise ValueError(f"kind_weights: are of agent runs, and no source has format: {RUNS}")
        return self

    @pydantic.model_validator(mode="after")
    def _trains_on_something(self):
        if self.sources and all(self.held_out_of(name) == 1 for name in self.sources):
            raise ValueError("sources: all are held out (held_out_fraction: 1), which leaves none to train on")
        return self

    def held_out_of(self, name: str) -> float:
        """The part of source `name` that is held out."""
        own = self.sources[name].held_out_fraction
        return self.held_out_fraction if own is None else own

    @property
    def holds_out(self) -> bool:
        """Whether anything is."""
        return any(self.held_out_of(name) > 0 for name in self.sources)

    @property
    def runs(self) -> bool:
        """Whether some source is of agent runs."""
        return any(source.runs for source in self.sources.values())

    @property
    def cache(self) -> pathlib.Path:
        """The cache folder, which may not exist yet."""
        chosen = self.cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/maverick-jax"
        return pathlib.Path(chosen).expanduser().absolute()

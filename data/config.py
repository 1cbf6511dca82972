"""The `data` section of a run's config."""

import hashlib
import json
import os
import pathlib
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from data.pictures.config import TilesConfig
from data.sources import AnySource, MadeSource, PictureSource, PreferencesSource, TrajectoriesSource
from data.sources.base import Positive
from data.trajectories.weights import KindWeights
from maverick_jax.settings.section import Section

CACHE_VARIABLE = "MAVERICK_CACHE"


class DataConfig(Section):
    """The data of a run: its sources, their order, and the shape of batches."""

    sources: dict[str, AnySource] = {}
    """Sources by name, mixed by weight. An objective that makes its own rows, such as `policy`, has none; all others
    need one or more."""
    batch_size: Positive = 8
    """Rows per step, in the whole job."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens per row, T."""
    tokenizer: Annotated[str, Field(min_length=1)] = "bytes"
    """`bytes`, `bytes_thinking` (with control tokens for thoughts), or the path of a `tokenizer.json`, of a tiktoken
    `tokenizer.model`, or of a folder with one of them. Not given, or null: the tokenizer of the model at
    `model.init_from`, or else of the teacher, or else `bytes`."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """How texts are packed. `concatenate`: documents are joined and cut every `sequence_length` tokens, without
    padding; `best_fit`: documents that fit into a row stay whole and go to the row that they fill best, the rest is
    padding. Trajectories are always packed by `best_fit`, and longer ones are cut between turns."""
    cell: Annotated[int, Field(ge=2)] | None = None
    """Tokens per cell of a row, a divisor of `sequence_length`. A document, window or piece of a document then lies in
    one cell or begins where a cell begins, so that devices can share rows: `mesh.context` needs cells that are a
    multiple of `model.attention_chunk_size`. `concatenate` cuts documents that begin inside a cell at the cell's end;
    `best_fit` and trajectories leave padding there. null: documents begin anywhere."""
    tiles: TilesConfig = TilesConfig()
    """How pictures are cut into tiles, and how many tiles rows have."""
    kind_weights: KindWeights = KindWeights()
    """Loss weights of trajectory tokens, by token kind."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of each source's tokens, from its end, that is held out: used for evaluation and never trained on. A
    source of several documents is cut between two of them."""
    shuffle: bool = True
    """true: documents come in random order, and rows in another random order each epoch. false: both in file order.
    Held-out rows are never shuffled."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed of the order. null: `run.seed`."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Number of worker processes that assemble batches; 0: threads of the training process do. Batches do not depend on
    it."""
    prefetch: Positive = 2
    """Batches prepared in advance, per worker process if there are any."""
    cache_dir: str | None = None
    """Folder of tokenized sources. null: the environment variable MAVERICK_CACHE, or else ~/.cache/maverick-jax."""

    @pydantic.field_validator("sources")
    @classmethod
    def _names(cls, sources):
        for name in sources:
            if not name.strip():
                raise ValueError("a source's name must not be empty")
        return sources

    @pydantic.model_validator(mode="after")
    def _has_whole_cells(self):
        if self.cell is not None and self.sequence_length % self.cell:
            fits = max(n for n in range(1, self.cell + 1) if self.sequence_length % n == 0)
            raise ValueError(f"cell: {self.cell} does not divide sequence_length ({self.sequence_length}); {fits} does")
        return self

    @pydantic.model_validator(mode="after")
    def _weighs_something(self):
        if self.kind_weights != KindWeights() and not self.has_kinds:
            raise ValueError(
                "kind_weights: requires a source with kind: trajectories, pictures or chain, and there is none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _has_pairs_alone(self):
        others = [name for name, source in self.sources.items() if not isinstance(source, PreferencesSource)]
        if self.has_preferences and others:
            raise ValueError(
                f"sources: {others[0]} holds no pairs, and others have kind: preferences; expected pairs in all"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _trains_on_something(self):
        if self.sources and all(self.held_out_of(name) == 1 for name in self.sources):
            raise ValueError("sources: all are held out (held_out_fraction: 1); expected one to train on")
        return self

    def held_out_of(self, name: str) -> float:
        """The fraction of source `name` that is held out."""
        own = self.sources[name].held_out_fraction
        return self.held_out_fraction if own is None else own

    @property
    def holds_out(self) -> bool:
        """Whether any data is held out."""
        return any(self.held_out_of(name) > 0 for name in self.sources)

    @property
    def has_trajectories(self) -> bool:
        """Whether any source contains trajectories."""
        return any(isinstance(source, TrajectoriesSource) for source in self.sources.values())

    @property
    def has_pictures(self) -> bool:
        """Whether any source contains pictures."""
        return any(isinstance(source, PictureSource) for source in self.sources.values())

    @property
    def tiles_per_row(self) -> int:
        """The most tiles that a row can have; 0: there are no pictures."""
        return self.tiles.most_in_row(self.sequence_length) if self.has_pictures else 0

    @property
    def has_kinds(self) -> bool:
        """Whether rows have token kinds: any source contains trajectories or pictures, or makes documents."""
        made = any(isinstance(source, MadeSource) for source in self.sources.values())
        return made or self.has_trajectories or self.has_pictures

    @property
    def has_preferences(self) -> bool:
        """Whether the sources contain pairs; all do, or none."""
        return any(isinstance(source, PreferencesSource) for source in self.sources.values())

    @property
    def cache(self) -> pathlib.Path:
        """The cache folder, which may not exist yet."""
        chosen = self.cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/maverick-jax"
        return pathlib.Path(chosen).expanduser().absolute()

    def cached(self, kind: str, identity: list) -> pathlib.Path:
        """The folder in the cache of what `identity`, JSON values, determines whole."""
        return self.cache / kind / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

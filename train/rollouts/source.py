"""Where the batch of each update comes from: the data, or something that the model as it stands has a part in."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick

Batch = dict[str, jax.Array]
"""The fields of `data.rows.fields` by name, each [A, B/A, ...]: A microbatches of one update."""


class BatchSource(Protocol):
    """The batches of a run, one for each update."""

    def __call__(self, update: int, state: Any) -> Batch | None:
        """The batch of update `update`, counted from 1, given the train state before it; None: there are no more. Asked
        once for each update, in their order. Must not keep `state`, which the update donates."""
        ...


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a source that makes batches may know of its run."""

    state: Any
    """The train state, or its shapes."""
    batch: dict[str, Any]
    """A batch of the data, or its shapes: every batch of the run is like it."""
    model_of: Callable[[Any], Maverick]
    """The model of a state, as it is run."""
    seed: int
    """Of the run."""
    end: int | None
    """The token that ends a text; None: the tokenizer has none."""


class BatchMaker(Protocol):
    """A config section that says how batches are made."""

    def open(self, data: BatchSource, setting: Setting) -> BatchSource:
        """The batches of a run whose data has the batches `data`. Compiles what it needs."""
        ...

    def flops_per_token(self, model: ModelConfig, sequence_length: int) -> float:
        """FLOPs of making batches with such a model, per token of the run's batches, averaged over updates."""
        ...


def from_data(batches: Iterator[Batch]) -> BatchSource:
    """The batches as they come, whatever the state is."""
    return lambda update, state: next(batches, None)


def batch_source(maker: BatchMaker | None, batches: Iterator[Batch], setting: Setting) -> BatchSource:
    """The batches of a run: those of the data, or those that `maker` makes of them."""
    data = from_data(batches)
    return data if maker is None else maker.open(data, setting)

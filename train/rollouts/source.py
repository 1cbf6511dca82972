"""The source of each update's batch: the data, or a maker that may use the current model."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import Tokenizer

Batch = dict[str, jax.Array]
"""The fields of a batch by name (`data.rows.fields`), each [A, B/A, ...] for the A microbatches of one update."""


class BatchSource(abc.ABC):
    """The batches of a run, one for each update."""

    @abc.abstractmethod
    def __call__(self, update: int, state: Any) -> Batch | None:
        """The batch of update `update`, counted from 1, given the train state before it; None at the end. It is called
        once per update, in order, and must not keep `state`, which the update donates."""

    def metrics(self) -> Mapping[str, Any]:
        """Metrics of the latest batch, NumPy values by name, which the update's line gets."""
        return {}

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Frees what it holds; no batch is asked for any more."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The facts about a run that a batch maker needs."""

    state: Any
    """The train state, or its shapes."""
    batch: dict[str, Any]
    """A batch of the data, or its shapes; every batch of the run has the same shapes."""
    model_of: Callable[[Any], Maverick]
    """Returns a state's model, including its adapters."""
    seed: int
    """The run's seed."""
    tokenizer: Tokenizer
    folder: pathlib.Path
    """The run directory."""
    place: Callable[[dict[str, np.ndarray]], Batch]
    """Puts the fields of all rows of a batch, [B, T] or [B], on the devices."""
    batch_of: Callable[[int], int]
    """The number of the batch that an update learns from; roll-backs leave some out."""


class BatchMaker(Protocol):
    """A config section that describes how batches are made."""

    def open(self, data: BatchSource, setting: Setting) -> BatchSource:
        """The batches of a run, made from the batches `data`. Compiles the programs that it needs."""
        ...

    def flops_per_token(self, model: ModelConfig, sequence_length: int) -> float:
        """FLOPs of making batches with such a model, per token of the run's batches, averaged over updates."""
        ...

    def bytes_per_device(self, model: ModelConfig, layout: Layout) -> int:
        """Bytes on one device that are held beside the train state to make batches."""
        ...


class DataBatches(BatchSource):
    """The batches in order; the state is ignored."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches

    def __call__(self, update: int, state: Any) -> Batch | None:
        return next(self._batches, None)


def from_data(batches: Iterator[Batch]) -> BatchSource:
    """The batches in order; the state is ignored."""
    return DataBatches(batches)


def batch_source(maker: BatchMaker | None, batches: Iterator[Batch], setting: Setting) -> BatchSource:
    """The batches of a run: those of the data, or those that `maker` makes from them."""
    data = from_data(batches)
    return data if maker is None else maker.open(data, setting)

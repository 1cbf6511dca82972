"""The base of objectives: what one declares to the run, and what the step and the evaluation ask of it.

Everything that an objective returns from a compiled program is a sum over the batch, or is divided by a total of the
whole batch, so that microbatches add up to exactly the large batch.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from data.rows.fields import PACKED
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.settings.section import Section
from train.rollouts.source import Batch, BatchMaker

Sums = dict[str, Any]
"""Sums over a batch by name: arrays, or trees of them."""
State = dict[str, jax.Array]
"""What an objective carries from step to step: scalars by name, saved with the train state."""
Findings = list[tuple[str, str]]
"""(config key, what is wrong with it)."""


@dataclasses.dataclass(frozen=True)
class Context:
    """What an objective may look at besides the model and the batch."""

    step: jax.Array
    """int32[]: updates done."""
    state: State
    references: dict[str, Maverick]
    """Frozen models, by the names that `Objective.references` gives them."""
    heads: dict[str, nnx.Param] = dataclasses.field(default_factory=dict)
    """Parameters that are trained with the model, by the names that `Objective.heads` gives them."""


jax.tree_util.register_dataclass(Context)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A frozen model that an objective looks at."""

    path: str
    """As for `load_pretrained`."""
    dtype: str = "keep"
    """Of its parameters: keep (as they are stored), float32 or bfloat16."""
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides of the run's sharding table."""
    made_by: str | None = None
    """The run config that trains it if it does not exist yet."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A parameter that is trained with the model: part of the train state and its checkpoints, of no export."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axis per dimension, as of the model's parameters."""
    std: float
    """Of its first values, which are normal; 0: zeros."""


@dataclasses.dataclass(frozen=True)
class StoredFields:
    """Fields of the training rows that were computed once, by a model, and are read from a folder."""

    path: str
    """The folder, of `data.targets.format`."""
    names: tuple[str, ...]
    """The fields that training reads of each row."""
    header: dict[str, tuple[str, Any]]
    """What the folder's header must say: value and the config key it comes from, by the header's key."""
    model: str | None = None
    """The model that must have made them; None: any."""


class Objective(Section, abc.ABC):
    """What a run optimizes: the section `objective` of a config, chosen by its `kind`."""

    kind: str

    # ---- what it needs ---------------------------------------------------------------------------------------------

    def fields(self) -> tuple[str, ...]:
        """The fields of a batch to train on that it reads, of `data.rows.fields`."""
        return PACKED

    def evaluation_fields(self) -> tuple[str, ...]:
        """The fields of a held-out batch that it reads."""
        return PACKED

    def stored_fields(self) -> StoredFields | None:
        """Those of `fields` that are read from a folder; None: all are made from the data."""
        return None

    def batch_maker(self) -> BatchMaker | None:
        """What makes batches to train on out of those of the data; None: it learns from the data's."""
        return None

    def references(self) -> dict[str, Reference]:
        """The frozen models it looks at, by a name."""
        return {}

    def same_tokens_as(self) -> dict[str, Reference]:
        """The models whose vocabulary and tokenizer the trained model must share, by their keys in this section. A
        config that gives neither takes them from there."""
        return self.references()

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        """Parameters that are trained with the model."""
        return ()

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check_model(self, model: ModelConfig, sequence_length: int) -> Findings:
        """Why it cannot train such a model on sequences of this many tokens; nothing if it can."""
        return []

    def check_references(self, model: ModelConfig, references: dict[str, ModelConfig]) -> Findings:
        """Why it cannot train such a model with these frozen ones; nothing if it can."""
        return []

    def pinned(self) -> dict[str, str]:
        """What of this section must not change while a run goes on, by key."""
        return {"kind": self.kind}

    # ---- training --------------------------------------------------------------------------------------------------

    def init(self) -> State:
        """The state before the first step."""
        return {}

    def advance(self, state: State, metrics: Sums) -> State:
        """The state after a step with these metrics."""
        return state

    def totals(self, batch: Batch) -> Sums:
        """Denominators of the whole batch, arrays [A, b, ...]: `tokens`, the number of real ones, which the run counts;
        and others."""
        real = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)  # float32 stops counting at 2^24
        return {"tokens": jnp.maximum(real, 1)}

    @abc.abstractmethod
    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        """This microbatch's share (arrays [b, ...]) of the loss, float32[], and sums for `metrics`: among them
        `router`, the model's RouterStats, or None of a dense model, which move the balance bias."""

    @abc.abstractmethod
    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """Metrics of the whole batch, `loss` among them; an update whose `loss` is not finite is refused."""

    def training_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """What a training line reports of `metrics`, on the host."""
        return metrics

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def first_context(self, references: dict[str, Maverick]) -> Context:
        """Of a model that is evaluated outside its run: no updates done, no heads."""
        return Context(jnp.zeros((), jnp.int32), self.init(), references)

    @abc.abstractmethod
    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """Sums over a held-out batch (arrays [b, ...]): `loss` and others, and `weight`, the number of labels that
        they are over."""

    def evaluation_metrics(self, sums: dict[str, Any]) -> dict[str, Any]:
        """What an evaluation reports of the sums over its batches, on the host: means by name."""
        weight = max(float(sums["weight"]), 1e-9)
        return {name: float(total) / weight for name, total in sums.items() if name != "weight"}

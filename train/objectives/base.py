"""The base of objectives: declarations for the run, and the methods that step and evaluation call.

Every result that an objective returns from a compiled program is a sum over the batch, or is divided by a total of the
whole batch, so that microbatches add up to exactly the result of the whole batch.
"""

import abc
import dataclasses
from collections.abc import Collection
from typing import Annotated, Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field

from data.rows.fields import PACKED
from maverick_jax.config import ModelConfig
from maverick_jax.model.transformer import Maverick
from maverick_jax.parameters import Role
from maverick_jax.settings.section import Section
from train.rollouts.source import Batch, BatchMaker

Sums = dict[str, Any]
"""Sums over a batch, by name: arrays or trees of arrays."""
State = dict[str, jax.Array]
"""An objective's state between steps: scalars by name, saved with the train state."""
Findings = list[tuple[str, str]]
"""(config key, what is wrong with it)."""


@dataclasses.dataclass(frozen=True)
class Context:
    """Inputs of an objective in addition to the model and the batch."""

    step: jax.Array
    """int32[]: number of updates done."""
    state: State
    references: dict[str, Maverick]
    """Frozen models, by the names that `Objective.references` gives them."""
    heads: dict[str, nnx.Param] = dataclasses.field(default_factory=dict)
    """Parameters that are trained with the model, by the names that `Objective.heads` gives them."""
    base: Maverick | None = None
    """The model without its low-rank adapters; None: it is not at hand."""


jax.tree_util.register_dataclass(Context)


class Notice(NamedTuple):
    """A condition of a run that its user should know of."""

    present: bool
    text: str
    """What is the case, with its numbers: the condition if `present`, otherwise that it has ended."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The declaration of a reference: a frozen model that an objective needs."""

    path: str
    """A path as for `load_pretrained`."""
    dtype: str = "keep"
    """Dtype of its parameters: `keep` (as stored), float32 or bfloat16."""
    rules: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides of the run's sharding table."""
    made_by: str | None = None
    """The run config that trains it if it does not exist yet."""


@dataclasses.dataclass(frozen=True)
class Head:
    """The declaration of an objective head: a parameter that is trained with the model, saved in checkpoints and not
    exported."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axis per dimension, as in the model's parameters."""
    std: float
    """Standard deviation of the normal initial values; 0: zeros."""


@dataclasses.dataclass(frozen=True)
class StoredFields:
    """Fields of the training rows that a model computed earlier and that are read from a folder."""

    path: str
    """The folder, in the format of `data.targets.format`."""
    names: tuple[str, ...]
    """The fields that training reads."""
    header: dict[str, tuple[str, Any]]
    """Required entries of the folder's header: header key -> (config key, value)."""
    model: str | None = None
    """The model that must have computed them; None: any."""


class ToStore(NamedTuple):
    """What a model computes once, to be read by training later."""

    objective: "Objective"
    """The objective that loads the model instead of reading what it computed."""
    model: str
    """The model's name among the references of `objective`."""
    wanted: Any
    """How it is stored: an `OfflineTargets` section."""
    temperature: float


class Objective(Section, abc.ABC):
    """The base of all objective kinds: the section `objective` of a config."""

    kind: str

    # ---- what it needs ---------------------------------------------------------------------------------------------

    @property
    def logit_rows(self) -> int | None:
        """Number of tokens per device whose logits are in memory at a time; None: chosen from the vocabulary size."""
        return 1  # it computes none

    def frozen(self) -> tuple[Role, ...]:
        """The parts of the model that are not trained unless the config says what is."""
        return ()

    def in_run(self, start: str | None, trained: Collection[Role], adapters: bool) -> Self:
        """This section with what follows from the rest of the config filled in. start: the model at `model.init_from`;
        trained: roles of the trained parameters; adapters: whether low-rank adapters are trained beside them. Raises
        InputError, beginning with the key, for a section that does not fit them."""
        return self

    def fields(self) -> tuple[str, ...]:
        """Names of the fields that it reads from a training batch; see `data.rows.fields`."""
        return PACKED

    def evaluation_fields(self) -> tuple[str, ...]:
        """Names of the fields that it reads from a held-out batch."""
        return PACKED

    def stored_fields(self) -> StoredFields | None:
        """The members of `fields` that are read from a folder; None: all fields are made from the data."""
        return None

    def to_store(self) -> ToStore | None:
        """How `maverick data targets` computes the stored fields; None: the section does not say."""
        return None

    def batch_maker(self) -> BatchMaker | None:
        """The maker of training batches from the batches of the data; None: it trains on the batches of the data."""
        return None

    def references(self) -> dict[str, Reference]:
        """The frozen models that it needs, by name."""
        return {}

    def same_tokens_as(self) -> dict[str, Reference]:
        """The models whose vocabulary and tokenizer the trained model must share, by their keys in this section. A
        config that gives neither takes them from there."""
        return self.references()

    def heads(self, model: ModelConfig, references: dict[str, ModelConfig]) -> tuple[Head, ...]:
        """The objective heads for this model, given the configs of the references."""
        return ()

    # ---- checks ----------------------------------------------------------------------------------------------------

    def check_model(self, model: ModelConfig, sequence_length: int) -> Findings:
        """Problems of training this model on sequences of this many tokens; empty if there are none."""
        return []

    def check_batch(self, batch_size: int, sequence_length: int, groups: int) -> Findings:
        """Problems of batches of this shape, divided by `groups` of devices; empty if there are none."""
        return []

    def check_references(self, model: ModelConfig, references: dict[str, ModelConfig]) -> Findings:
        """Problems of training this model with these references; empty if there are none."""
        return []

    def check_data(self, counts: dict[str, dict[str, Any]]) -> None:
        """Looks at what was counted when sources were tokenized, by source, before anything is compiled. Raises
        InputError for a source with nothing to learn from, and logs what is not learned from."""
        return

    def pinned(self) -> dict[str, str]:
        """Settings of this section that must not change when a run is resumed, by key."""
        return {"kind": self.kind}

    # ---- training --------------------------------------------------------------------------------------------------

    def init(self) -> State:
        """The state before the first step."""
        return {}

    def advance(self, state: State, metrics: Sums) -> State:
        """The state after a step with these metrics."""
        return state

    def totals(self, batch: Batch) -> Sums:
        """Denominators of the whole batch, arrays [A, b, ...]: the number of `tokens` without padding, which the run
        counts, and others."""
        real = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32)  # float32 stops counting at 2^24
        return {"tokens": jnp.maximum(real, 1)}

    def survey(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """What the loss of each microbatch must know of the whole batch (arrays [A, b, ...]) and of the model as it
        stands, beside `totals`, of which it becomes a part. No gradient passes through it."""
        return {}

    @abc.abstractmethod
    def loss(self, model: Maverick, batch: Batch, totals: Sums, context: Context) -> tuple[jax.Array, Sums]:
        """This microbatch's (arrays [b, ...]) share of the loss, float32[], and sums for `metrics`. The sums include
        `router`: the model's RouterStats, which update the balance bias, or None for a dense model."""

    @abc.abstractmethod
    def metrics(self, model: Maverick, sums: Sums, totals: Sums, context: Context) -> Sums:
        """Metrics of the whole batch, including `loss`. An update whose `loss` is not finite is skipped."""

    def training_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The values of `metrics` for a training log line, on the host."""
        return metrics

    def notices(self, metrics: dict[str, Any]) -> dict[str, Notice]:
        """The conditions, by name, that these metrics of an update show to be present or not, on the host. A condition
        that they cannot decide is left out. A run logs a condition when it begins and when it ends."""
        return {}

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def first_context(self, references: dict[str, Maverick]) -> Context:
        """The context of a model that is evaluated outside its run: step 0 and no heads."""
        return Context(jnp.zeros((), jnp.int32), self.init(), references)

    @abc.abstractmethod
    def evaluate(self, model: Maverick, batch: Batch, context: Context) -> Sums:
        """Sums over a held-out batch (arrays [b, ...]): `loss` and others, and `weight`, the number of labels in the
        sums."""

    def evaluation_metrics(self, sums: dict[str, Any]) -> dict[str, Any]:
        """The metrics of an evaluation, by name, from the sums over its batches; on the host."""
        weight = max(float(sums["weight"]), 1e-9)
        return {name: float(total) / weight for name, total in sums.items() if name != "weight"}

    def remarks(self, found: dict[str, Any], state: dict[str, float]) -> list[str]:
        """Sentences on an evaluation's metrics `found`, for its reader. `state`: the scalars (see `init`) that the
        model's checkpoint holds; empty if it holds none."""
        return []


class ChunkedLogits(Objective):
    """The base of objectives that compute logits."""

    loss_chunk: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens per device whose logits are in memory at a time; null: chosen from the vocabulary size."""

    @property
    def logit_rows(self) -> int | None:
        return self.loss_chunk

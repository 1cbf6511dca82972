"""The base of all optimizers: learning rate schedule, gradient clipping, decoupled weight decay, and memory use."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from maverick_jax import parameters, width
from maverick_jax.accounting.communication import Transfer
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.parameters import Parameter, Role
from maverick_jax.settings.kinds import Kinds
from maverick_jax.settings.section import Section
from train.optimizers.average import BYTES_PER_ELEMENT, AverageConfig, average_weights
from train.optimizers.decay import decay_weights
from train.optimizers.multipliers import Multipliers, roles_by_name
from train.optimizers.scaled_direction import scaled_direction
from train.optimizers.schedule import RATE, learning_rate, rate_of, scale_by_learning_rate
from train.trainable.selection import Selection

TEXT_MODEL = Selection()
"""All parameters of a text model."""


Rates = dict[str, jax.Array]
"""The numbers of an update that no program contains, float32[]: `learning_rate`, `learning_rate_ROLE` of each role that
has a multiplier, and `weight_decay`."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Turns gradients of the selected parameters into updates."""

    transform: optax.GradientTransformationExtraArgs
    """Its `update` takes `rates` too."""
    schedule: optax.Schedule
    """Learning rate, by the number of updates done."""
    weight_decay: float
    selection: Selection
    """The parameters that are trained."""
    multipliers: Mapping[Role, float] = dataclasses.field(default_factory=dict)
    """Factors of the learning rate, by role; 1 for the others."""

    def init(self, model, heads: dict[str, Any]) -> optax.OptState:
        """Optimizer state before the first step, for the trained parameters only."""
        return self.transform.init(self.selection.select(model, heads))

    def rates(self, step: jax.Array, skipped: jax.Array) -> Rates:
        """The rates of the next update: `step` updates were attempted, `skipped` of them refused."""
        rate = self.schedule(step - skipped)
        by_role = {rate_of(role): factor * rate for role, factor in self.multipliers.items()}
        found = {RATE: rate, **by_role, "weight_decay": self.weight_decay}
        return {name: jnp.asarray(rate, jnp.float32) for name, rate in found.items()}


class OptimizerBase(Section, abc.ABC):
    """The fields that all optimizer kinds share, and the methods that each kind must define."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises linearly to its peak. A shorter run never gets there."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warmup."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps in which `wsd` decays; it begins after the warmup at the earliest."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate divided by the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of weight matrices; norms, router biases and the embedding table are not decayed."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global L2 norm; null: never."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Number of microbatches per update; the result is the same as with the whole batch at once."""
    multipliers: Multipliers = Multipliers()
    """Factors of the learning rate, by parameter role, such as `{router: 0.5, embed: 2}`; 1 for roles without one."""
    average: AverageConfig | None = None
    """An exponential average of the trained parameters, 4 bytes each; null: none."""

    @abc.abstractmethod
    def direction(self, declared: Mapping[str, Parameter]) -> optax.GradientTransformation:
        """The transformation of gradients to update directions, before decay and learning rate. Its tree is a dict of
        arrays by name (`train.trainable.selection.Trained`): parameters of the model as in `declared`, heads under
        `heads/`."""

    @abc.abstractmethod
    def moment_bytes(self, parameter: Parameter | None) -> int:
        """Bytes of the direction's state per element of a parameter of the model, or of a head if `parameter` is
        None."""

    def width_factor(self, parameter: Parameter, model: ModelConfig) -> float:
        """Factor of the direction of a parameter of `model`, for `model.base_width`."""
        return width.update_factor(parameter, model)

    def state_bytes(self, parameter: Parameter | None) -> int:
        """Bytes of optimizer state per element, the average included."""
        return self.moment_bytes(parameter) + (0 if self.average is None else BYTES_PER_ELEMENT)

    def update_flops(self, parameter: Parameter, layout: Layout) -> float:
        """FLOPs of matrix products on one device in the update of a parameter; 0 unless a kind says otherwise."""
        return 0.0

    def transfers(self, parameter: Parameter, layout: Layout) -> list[Transfer]:
        """What one device sends in the update of a parameter; nothing unless a kind says otherwise."""
        return []

    def schedule_of(self, total_steps: int, since: int = 0) -> optax.Schedule:
        """The learning rate schedule of a run of `total_steps`: number of updates done -> learning rate. since: the
        updates before it; a run that has refused some, and so done fewer, begins with the first rate."""
        schedule = learning_rate(
            self.schedule, self.learning_rate, self.warmup_steps, total_steps, self.decay_fraction, self.min_ratio
        )
        return schedule if since == 0 else lambda count: schedule(jnp.maximum(jnp.asarray(count) - since, 0))

    def build(
        self, total_steps: int, model: ModelConfig, selection: Selection = TEXT_MODEL, since: int = 0
    ) -> Optimizer:
        """The optimizer of the selected parameters of a model, for a run of `total_steps`: clipping, direction,
        decoupled decay (arXiv 1711.05101), learning rate, average. since: as of `schedule_of`. Raises InputError if
        single experts are trained and averaged."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        schedule = self.schedule_of(total_steps, since)
        declared = parameters.by_name(model)
        factors = {name: factor for name, p in declared.items() if (factor := self.width_factor(p, model)) != 1}
        direction = scaled_direction(self.direction(declared), factors)
        average = [] if self.average is None else [average_weights(self.average.decay)]
        if average and selection.experts is not None:
            raise InputError("optimizer.average: averages whole arrays; expected null, or no trainable.experts")
        scale = scale_by_learning_rate(roles_by_name(model))
        transform = optax.chain(*clip, direction, decay_weights(), scale, *average)
        return Optimizer(transform, schedule, self.weight_decay, selection, self.multipliers.named())


OPTIMIZERS = Kinds("optimizer", OptimizerBase, default="adamw")
"""All optimizers; a section without `kind` is `adamw`."""

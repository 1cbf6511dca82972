"""AdamW, with decay by parameter role, of the parameters that are trained."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import pydantic
from pydantic import Field

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.network import Dtype
from maverick_jax.parameters import ROLES, TEXT_ROLES, Role
from maverick_jax.settings.section import Section
from train.objectives.base import Head
from train.optimizers.schedule import learning_rate
from train.trainable.lora import LoraConfig
from train.trainable.selection import Selection


def _once(ids: tuple[int, ...]) -> tuple[int, ...]:
    if twice := [i for place, i in enumerate(ids) if i in ids[:place]]:
        raise ValueError(f"{twice[0]} is there twice")
    return ids


LayerNumber = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,4})$")]
Chosen = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), pydantic.AfterValidator(_once)]
"""Experts of a layer, from 0."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What turns gradients into updates."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    """Learning rate, by the number of updates done."""
    selection: Selection
    """What they are of."""

    def init(self, model, heads: dict[str, Any]) -> optax.OptState:
        """State before the first step, of the trained parameters only."""
        return self.transform.init(self.selection.select(model, heads))


class OptimizerConfig(Section):
    """The `optimizer` section."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warmup."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps in which `wsd` decays."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate over peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of weight matrices; norms, router biases and the embedding table are not decayed."""
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global L2 norm; null: never."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Microbatches per update; the result is that of the whole batch at once."""
    mu_dtype: Dtype = "float32"
    """What the first moment is kept in; sums are float32."""
    nu_dtype: Dtype = "float32"
    """What the second moment is kept in."""
    train: tuple[Role, ...] | None = None
    """The parts of the model that are trained, by role; all others stay as they are, to the bit, and have no moments.
    null: all but `vision`, the image encoder; with `lora`, none."""
    experts: Annotated[dict[LayerNumber, Chosen], Field(min_length=1)] | None = None
    """Of the routed experts, those that are trained: a list for each layer that has any, by its number, from 0; or the
    file that `maverick data experts` made. null: all, if `train` says so."""

    lora: LoraConfig | None = None
    """Adapters that are trained beside the model; null: none."""

    def schedule_of(self, total_steps: int) -> optax.Schedule:
        return learning_rate(
            self.schedule, self.learning_rate, self.warmup_steps, total_steps, self.decay_fraction, self.min_ratio
        )

    def build(self, total_steps: int) -> Optimizer:
        """AdamW (arXiv 1711.05101) after clipping, for a run of `total_steps`."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        schedule = self.schedule_of(total_steps)
        transform = optax.chain(
            *clip,
            scale_by_adam(self.b1, self.b2, self.eps, self.mu_dtype, self.nu_dtype),
            decay_weights(self.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
        return Optimizer(transform, schedule, self.selection())

    def selection(self) -> Selection:
        """What of the model is trained."""
        roles = (TEXT_ROLES if self.lora is None else ()) if self.train is None else self.train
        chosen = None if self.experts is None else {int(layer): ids for layer, ids in self.experts.items()}
        return Selection(roles, chosen, self.lora and self.lora.scale)

    def adapters(self, model: ModelConfig) -> tuple[Head, ...]:
        """What is trained beside such a model, of the train state and its checkpoints; merged into every export."""
        return () if self.lora is None else self.lora.adapters(model)

    def makes_experts(self) -> bool:
        """Whether the routed experts that are multiplied with are made of what is stored: see `model.overlays`."""
        return self.experts is not None or (self.lora is not None and "experts" in self.lora.targets)

    def pinned(self, model: ModelConfig) -> dict[str, Any]:
        """What of this section a run keeps from its first step to its last, by key."""
        chosen = self.selection().experts
        return {
            "train": sorted(self.selection().roles),
            "lora": self.lora and self.lora.model_dump(mode="json"),
            "experts": chosen and {str(layer): sorted(chosen.get(layer, ())) for layer in model.moe_layers},
        }

    def misfits(self, model: ModelConfig) -> list[tuple[str, str]]:
        """(key, what is wrong) where such a model has not what is to be trained."""
        chosen = self.selection()
        if self.train is not None:
            there = parameters.roles_of(model)
            for role in [role for role in self.train if role not in there]:
                said = f"the model has no parameters of {role}; it has {', '.join(sorted(there))}"
                return [("optimizer.train", said)]
        if self.lora is not None and (found := self._misfits_of_adapters(self.lora, model)):
            return found
        if self.lora is None and not chosen.parameters(model):
            return [("optimizer.train", f"nothing is trained; expected some of {', '.join(ROLES)}")]
        if chosen.experts is None:
            return []
        if "experts" not in chosen.roles:
            return [("optimizer.experts", "are chosen, but optimizer.train leaves routed experts out: add experts")]
        moe, count = model.moe_layers, model.num_local_experts
        found = []
        for layer, ids in chosen.experts.items():
            key = f"optimizer.experts.{layer}"
            if layer not in moe:
                near = f"; the nearest that is one is {min(moe, key=lambda i: abs(i - layer))}" if moe else ""
                found.append((key, f"layer {layer} is no mixture of experts{near}"))
            elif max(ids) >= count:
                found.append((key, f"no expert {max(ids)}: the layer's experts are 0 to {count - 1}"))
        return found

    def _misfits_of_adapters(self, lora: LoraConfig, model: ModelConfig) -> list[tuple[str, str]]:
        there = parameters.roles_of(model)
        if missing := [role for role in lora.targets if role not in there]:
            return [("optimizer.lora.targets", f"the model has no parameters of {missing[0]}")]
        if both := [role for role in self.selection().roles if role in lora.targets]:
            return [("optimizer.train", f"{both[0]} has adapters in its place (optimizer.lora.targets)")]
        return []


def scale_by_adam(b1: float, b2: float, eps: float, mu_dtype: Dtype, nu_dtype: Dtype) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980). `optax.scale_by_adam`, but each moment is kept in a dtype of its own."""

    def init(params):
        zeros = lambda dtype: jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros(nu_dtype))

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        steps = count.astype(jnp.float32)
        mean = lambda b, old, new: jax.tree.map(lambda m, g: b * m.astype(jnp.float32) + (1 - b) * g, old, new)
        squares = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), updates)
        mu = mean(b1, state.mu, jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        nu = mean(b2, state.nu, squares)
        direction = lambda m, v: (m / (1 - b1**steps)) / (jnp.sqrt(v / (1 - b2**steps)) + eps)
        kept = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype), tree)
        new_state = optax.ScaleByAdamState(count, kept(mu, mu_dtype), kept(nu, nu_dtype))
        return jax.tree.map(direction, mu, nu), new_state

    return optax.GradientTransformation(init, update)


UNDECAYED = (
    *("norm", "attention_norm", "mlp_norm", "router_bias", "embed"),
    *("norm_pre", "norm_post", "class_embedding", "positions", "q_bias", "k_bias", "v_bias", "o_bias"),
    *("fc1_bias", "fc2_bias"),
)


def is_decayed(path: tuple) -> bool:
    """Whether the parameter at this tree path is decayed, by the name the model gives it."""
    parts = [part for key in path for part in str(getattr(key, "name", getattr(key, "key", ""))).split("/")]
    return not any(part in UNDECAYED for part in parts)


def decay_weights(rate: float) -> optax.GradientTransformation:
    """Add rate * parameter to the update of every decayed parameter. By role, not by rank: stacked norms are 2-D."""

    def update(updates, params):
        decayed = lambda path, u, p: u + rate * p.astype(u.dtype) if is_decayed(path) else u
        return jax.tree_util.tree_map_with_path(decayed, updates, params)

    return optax.stateless(update)

"""Low-rank adapters (LoRA, arXiv 2106.09685): parameters beside the model that change what it computes, while it stays
as it is. Of an array of weights W: W + scale * A B, where B begins as zeros."""

from typing import Annotated, Any, Literal

from pydantic import Field

from maverick_jax import parameters
from maverick_jax.checkpoint.adapters import AdapterSettings, factor_names
from maverick_jax.checkpoint.names import ADAPTERS, HEADS
from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import Factors
from maverick_jax.parameters import VISION_ROLES, Parameter, Role
from train.objectives.base import Head

Target = Literal[
    "attention",
    "experts",
    "shared",
    "mlp",
    "vision",
    "adapter",
    "projector",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "experts_in",
    "experts_out",
]
ROLES: tuple[Role, ...] = ("attention", "experts", "shared", "mlp", "vision", "adapter", "projector")
"""Targets that are roles; the others are names of matrices."""
MERGED: tuple[Role, ...] = ("experts", "vision", "adapter", "projector")
"""Roles whose adapters are added to the weights before their product."""
MATRICES: dict[str, tuple[str, tuple[Role, ...]]] = {
    **{f"{name}_proj": (name, ("attention",)) for name in "qkvo"},
    **{f"{name}_proj": (name, ("mlp", "shared")) for name in ("gate", "up", "down")},
    **{name: (name, ("experts",)) for name in ("experts_in", "experts_out")},
}
"""Name of a matrix as a target -> its last name among our parameters, and the roles in which it occurs."""


class LoraConfig(AdapterSettings):
    """`trainable.lora`: adapters are trained instead of the weights they are added to."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attention",)
    """What gets adapters: the parts of the model with these roles, or matrices by name, in every layer that has them.
    `gate_proj`, `up_proj` and `down_proj` are those of dense layers and of shared experts; `experts_in` (gate and up,
    which share their A) and `experts_out` are those of the routed experts. `vision` are all matrices of
    the image encoder's layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that each training step sets to zero. Which ones depends on `run.seed` and the step.
    Routed experts' adapters have none."""
    init_from: str | None = None
    """A PEFT adapter folder whose factors the adapters start from; rank, alpha, rslora and targets that are not given
    here are taken from there. null: A is random and B is zero."""

    @property
    def roles(self) -> frozenset[Role]:
        """The roles of which at least one matrix has adapters."""
        return frozenset(role for target in self.targets for role in _roles_of(target))

    def adapted(self, model: ModelConfig) -> list[Parameter]:
        """The parameters of such a model that have adapters."""
        return [p for p in parameters.of_model(model) if any(_matches(target, p) for target in self.targets)]

    def unmatched(self, model: ModelConfig) -> list[Target]:
        """The targets of which such a model has no matrix."""
        there = parameters.of_model(model)
        return [target for target in self.targets if not any(_matches(target, p) for p in there)]

    def adapters(self, model: ModelConfig) -> tuple[Head, ...]:
        """A and B of every array of weights; A is drawn so that x A is about as large as x."""
        found = []
        for p in self.adapted(model):
            at, none = Factors.of(p), (None,) * len(p.lead)
            a, b = at.shapes(p.shape, self.rank)
            a_axes, b_axes = at.axes(p.axes)
            name_a, name_b = (f"{ADAPTERS}{factor}".removeprefix(HEADS) for factor in factor_names(p.name))
            found.append(Head(name_a, p.lead + a, none + a_axes, at.fan_in(p.shape) ** -0.5))
            found.append(Head(name_b, p.lead + b, none + b_axes, 0.0))
        return tuple(found)

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of its adapters; `init_from` is only where they began."""
        return self.model_dump(mode="json", exclude={"init_from"})


def targets_of(matrices: set[tuple[str, str]]) -> tuple[Target, ...]:
    """The targets that mean these matrices, given as (part of a layer, name) in transformers' words. A name that a part
    shares with others is taken for all of them, unless the part is complete and alone."""
    of = lambda part: {name for there, name in matrices if there == part}
    found: list[str] = sorted(of("self_attn")) + [role for role in VISION_ROLES if of(role)]
    dense, shared = of("feed_forward"), of("shared_expert")
    whole = {"gate_proj", "up_proj", "down_proj"}
    if whole in (dense, shared) and not (dense and shared):
        found.append("mlp" if dense else "shared")
    else:
        found += sorted(dense | shared)
    return tuple(found)  # pyright: ignore[reportReturnType]


def _roles_of(target: Target) -> tuple[Role, ...]:
    return MATRICES[target][1] if target in MATRICES else tuple(role for role in ROLES if role == target)


def is_matrix(parameter: Parameter) -> bool:
    """Whether it is a matrix of a product. Biases of heads and tables of positions have two axes too, and the image
    encoder's first matrix belongs to no layer."""
    name = parameter.name.rpartition("/")[2]
    return len(parameter.shape) > 1 and not name.endswith("_bias") and name not in ("patch", "positions")


def _matches(target: Target, parameter: Parameter) -> bool:
    name = MATRICES[target][0] if target in MATRICES else parameter.name.rpartition("/")[2]
    return is_matrix(parameter) and parameter.role in _roles_of(target) and parameter.name.rpartition("/")[2] == name

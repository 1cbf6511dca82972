"""Low-rank adapters (LoRA, arXiv 2106.09685): parameters beside the model that change what it computes, while it stays
as it is. Of an array of weights W: W + alpha / rank * A B, where B begins as zeros."""

from typing import Annotated, Literal

from pydantic import Field

from maverick_jax import parameters
from maverick_jax.checkpoint.adapters import AdapterSettings, factor_names
from maverick_jax.checkpoint.names import ADAPTERS, HEADS
from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import Factors
from train.objectives.base import Head

Target = Literal["attention", "experts", "shared", "mlp"]


class LoraConfig(AdapterSettings):
    """`trainable.lora`: adapters are trained instead of the weights they are added to."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attention",)
    """The parts of the model that get adapters, by role: each of their matrices has its own. Gate and up of a routed
    expert share their A."""

    def adapters(self, model: ModelConfig) -> tuple[Head, ...]:
        """A and B of every array of weights; A is drawn so that x A is about as large as x."""
        found = []
        for p in parameters.of_model(model):
            if p.role in self.targets and len(p.shape) > 1:
                at, none = Factors.of(p), (None,) * len(p.lead)
                a, b = at.shapes(p.shape, self.rank)
                a_axes, b_axes = at.axes(p.axes)
                name_a, name_b = (f"{ADAPTERS}{factor}".removeprefix(HEADS) for factor in factor_names(p.name))
                found.append(Head(name_a, p.lead + a, none + a_axes, at.fan_in(p.shape) ** -0.5))
                found.append(Head(name_b, p.lead + b, none + b_axes, 0.0))
        return tuple(found)

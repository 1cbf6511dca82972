"""Low-rank adapters (LoRA, arXiv 2106.09685): parameters beside the model that change what it computes, while it stays
as it is. Of an array of weights W: W + alpha / rank * A B, where B begins as zeros."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from maverick_jax.accounting import Parameter, layer_parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import Factors
from maverick_jax.settings.section import Section
from train.objectives.next_token import Head
from train.trainable.selection import ADAPTERS, role_of

Target = Literal["attention", "experts", "shared", "mlp"]


class LoraConfig(Section):
    """`optimizer.lora`: adapters are trained in the place of weights."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Columns of A and rows of B; of experts, of each by itself."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32.0
    """The product of A and B is multiplied with alpha / rank."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attention",)
    """The parts of the model that get adapters, by role: each of their matrices has its own. Gate and up of a routed
    expert share their A."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def adapters(self, model: ModelConfig) -> tuple[Head, ...]:
        """A and B of every array of weights; A is drawn so that x A is about as large as x."""
        found = []
        for name, lead, p in _arrays(model):
            if role_of(name) in self.targets:
                at, none = Factors.of(name, p.axes), (None,) * len(lead)
                a, b = at.shapes(p.shape, self.rank)
                a_axes, b_axes = at.axes(p.axes)
                found.append(Head(f"{ADAPTERS}{name}/a", lead + a, none + a_axes, at.fan_in(p.shape) ** -0.5))
                found.append(Head(f"{ADAPTERS}{name}/b", lead + b, none + b_axes, 0.0))
        return tuple(found)


def _arrays(model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], Parameter]]:
    """Every array of the layers: its name, the sizes of the axes that stack it, and what it is of one layer."""
    stacked = (model.num_periods,)
    for run, layers, lead in (
        ("periods", model.period if model.num_periods else (), stacked),
        ("tail", model.tail, ()),
    ):
        for i, spec in enumerate(layers):
            for p in layer_parameters(model, spec):
                yield f"{run}/layer_{i}/{p.name}", lead, p

"""Learning rates by role: `optimizer.multipliers`, and the role of each trained array."""

from typing import Annotated, Any

import pydantic
from pydantic import Field

from maverick_jax import parameters
from maverick_jax.checkpoint.adapters import factor_names
from maverick_jax.checkpoint.names import ADAPTERS
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import ROLES, Role
from maverick_jax.settings.section import Section


def _positive(factor: float) -> float:
    if factor > 0:
        return factor
    raise ValueError(f"must be greater than 0, got {factor:g}; trainable.parameters without the role freezes it")


Multiplier = Annotated[
    float,
    pydantic.AfterValidator(_positive),
    Field(json_schema_extra={"exclusiveMinimum": 0}, description="Factor of the learning rate of this role."),
]
_BY_ROLE: dict[str, Any] = {role: (Multiplier, 1.0) for role in ROLES}


class Multipliers(pydantic.create_model("ByRole", __base__=Section, **_BY_ROLE)):
    """`optimizer.multipliers`: a factor of the learning rate per parameter role. An adapter has the role of the matrix
    that it is added to; an objective's own parameters have none."""

    def named(self) -> dict[Role, float]:
        """The factors that are not 1."""
        return {role: factor for role in ROLES if (factor := getattr(self, role)) != 1}

    def misfits(self, model: ModelConfig) -> list[tuple[str, str]]:
        """(key, what is wrong) for each factor of a role that no parameter of the model has."""
        there = [role for role in ROLES if role in parameters.roles_of(model)]
        return [
            (f"optimizer.multipliers.{role}", f"the model has no parameters of {role}; it has {', '.join(there)}")
            for role in self.named()
            if role not in there
        ]


def roles_by_name(model: ModelConfig) -> dict[str, Role]:
    """The role of every array of the model and of every adapter that it could have, by their names among the trained
    arrays (`train.trainable.selection.Trained`)."""
    declared = parameters.of_model(model)
    found: dict[str, Role] = {p.name: p.role for p in declared}
    found.update({ADAPTERS + factor: p.role for p in declared for factor in factor_names(p.name)})
    return found

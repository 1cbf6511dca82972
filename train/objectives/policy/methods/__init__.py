"""Methods of reinforcement learning, one file per family; `docs/guides/alignment.md` compares them. One class per kind,
chosen by `objective.method.kind`."""

from typing import Annotated

from maverick_jax.settings.kinds import Kinds
from train.objectives.policy.methods.base import PolicyMethod
from train.objectives.policy.methods.clipped import Cispo, Dapo, DrGrpo, Grpo
from train.objectives.policy.methods.sequences import Gspo, Rloo
from train.objectives.policy.methods.values import Ppo

__all__ = ["METHODS", "AnyMethod", "Grpo", "PolicyMethod", "Ppo"]

METHODS = Kinds("method", PolicyMethod, default="grpo")
for _kind in (Grpo, DrGrpo, Dapo, Gspo, Rloo, Cispo, Ppo):
    METHODS.register(_kind)

AnyMethod = Annotated[PolicyMethod, METHODS]
"""A section of any kind of method; without `kind` it is `grpo`."""

"""Environments in which a model acts, with tools, a user and outcomes: one file per kind, chosen by `kind`. No JAX."""

from typing import Annotated

from data.environments.base import Environment, EnvironmentConfig, Feedback, Opening
from data.environments.toy_shop import ToyShopConfig
from maverick_jax.settings.kinds import Kinds

__all__ = ["ENVIRONMENTS", "AnyEnvironment", "Environment", "EnvironmentConfig", "Feedback", "Opening", "ToyShopConfig"]

ENVIRONMENTS = Kinds("environment", EnvironmentConfig)
ENVIRONMENTS.register(ToyShopConfig)

AnyEnvironment = Annotated[EnvironmentConfig, ENVIRONMENTS]

"""Environments in which a model acts, with tools, a user and outcomes: one file per kind, chosen by `kind`. No JAX."""

from typing import Annotated

from data.environments.base import Environment, EnvironmentConfig, Feedback, Opening
from data.environments.calculator import CalculatorConfig
from data.environments.gymnasium_text import GymnasiumTextConfig
from data.environments.injected_shop import InjectedShopConfig
from data.environments.tool_methods import ToolMethodsConfig
from data.environments.toy_shop import ToyShopConfig
from maverick_jax.settings.kinds import Kinds

__all__ = [
    "ENVIRONMENTS",
    "AnyEnvironment",
    "CalculatorConfig",
    "Environment",
    "EnvironmentConfig",
    "Feedback",
    "GymnasiumTextConfig",
    "InjectedShopConfig",
    "Opening",
    "ToolMethodsConfig",
    "ToyShopConfig",
]

ENVIRONMENTS = Kinds("environment", EnvironmentConfig)
for _kind in (CalculatorConfig, ToyShopConfig, InjectedShopConfig):
    ENVIRONMENTS.register(_kind)

AnyEnvironment = Annotated[EnvironmentConfig, ENVIRONMENTS]

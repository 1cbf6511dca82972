"""Worlds that a model acts in, one file each, chosen by `kind`: tools, a user, and how an episode ended. No JAX."""

from data.environments.base import Environment, EnvironmentConfig, Feedback, Opening
from data.environments.toy_shop import ToyShopConfig

__all__ = ["AnyEnvironment", "Environment", "EnvironmentConfig", "Feedback", "Opening", "ToyShopConfig"]

AnyEnvironment = ToyShopConfig
"""The union of the kinds of environments."""

"""Which parameters are trained. The others are no part of what is differentiated or kept moments for: they cost nothing
but their own bytes, and stay as they are to the bit."""

from collections.abc import Iterable
from typing import Any, Literal

import jax

from maverick_jax.checkpoint import names

Role = Literal["vision"]
"""A part of the model, by what it is for. `vision`: the image encoder with its adapter and projector."""

PATHS: dict[Role, str] = {"vision": "vision/"}
"""How the names of a role's parameters start."""

HEADS = "heads/"
"""How the names of an objective's own parameters start among the trained ones."""

Trained = dict[str, jax.Array]
"""Parameters by name: the model's as it names them, the heads' after `HEADS`."""


def select(model, heads: dict[str, Any], frozen: Iterable[Role] = ()) -> Trained:
    """All parameters but those of the roles that are frozen."""
    prefixes = tuple(PATHS[role] for role in frozen)
    of_model = {name: x for name, x in names.flatten(model).items() if not name.startswith(prefixes)}
    return of_model | {HEADS + name: x for name, x in names.flatten(heads).items()}


def put(trained, model, heads: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model and the heads with these parameters in place of their own."""
    own = {name.removeprefix(HEADS): x for name, x in trained.items() if name.startswith(HEADS)}
    changed = {name: trained.get(name, x) for name, x in names.flatten(model).items()}
    return names.unflatten(model, changed), names.unflatten(heads, own)

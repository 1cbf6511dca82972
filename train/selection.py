"""Which parameters are trained. The others are no part of what is differentiated or kept moments for: they cost nothing
but their own bytes, and stay as they are to the bit."""

from collections.abc import Iterable
from typing import Any, Literal

import jax

Role = Literal["vision"]
"""A part of the model, by what it is for. `vision`: the image encoder with its adapter and projector."""

PATHS: dict[Role, str] = {"vision": "vision/"}
"""How the names of a role's parameters start."""


def split(model, frozen: Iterable[Role]) -> tuple[Any, Any]:
    """(trained, frozen): two trees of the model's structure, None in the places that the other holds."""
    prefixes = tuple(PATHS[role] for role in frozen)
    is_frozen = lambda path: _name(path).startswith(prefixes)
    pick = lambda wanted: jax.tree_util.tree_map_with_path(lambda p, x: x if is_frozen(p) == wanted else None, model)
    return pick(False), pick(True)


def join(trained, frozen):
    """The whole model again."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda x: x is None)


def _name(path) -> str:
    return "/".join(str(getattr(key, "name", getattr(key, "key", key))) for key in path) + "/"

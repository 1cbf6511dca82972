"""Names of the arrays of a pytree: the path, joined with `/`, e.g. `model/periods/layer_0/attention/q`.

Names are stored in checkpoints, so they do not depend on the library that holds the arrays: the `value` that an
`nnx.Variable` adds below each parameter is left out.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from maverick_jax.errors import InputError

MODEL = "model/"
"""Prefix of the model's parameters among the arrays of a run's checkpoint."""
HEADS = "heads/"
"""Prefix of the parameters that are trained beside the model."""
ADAPTERS = HEADS + "lora/"
"""Prefix of the factors of low-rank adapters: then the parameter's name, `/a` or `/b`."""
OPTIMIZER = "opt_state/"
"""Prefix of the optimizer's state."""
OBJECTIVE = "objective/"
"""Prefix of the objective's scalars."""

_VARIABLE_VALUE = GetAttrKey("value")


def flatten(tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Name -> leaf, in the tree's order. Dicts, dataclasses, (named) tuples, lists and NNX modules are inner nodes,
    unless `is_leaf` makes them leaves.

    Raises ValueError if two leaves have the same name.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    named: dict[str, Any] = {}
    for path, leaf in paths:
        name = _name(path)
        if name in named:
            raise ValueError(f"two leaves of the tree are both named {name!r}")
        named[name] = leaf
    return named


def unflatten(target, leaves: dict[str, Any]):
    """A tree with the structure of `target` and the leaves of `leaves`, matched by name.

    Raises InputError if the names differ.
    """
    names = list(flatten(target))
    missing = [name for name in names if name not in leaves]
    spare = sorted(set(leaves) - set(names))
    if missing or spare:
        raise InputError(f"array names do not match the tree: missing {missing[:5]}, unexpected {spare[:5]}")
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in names])


def _name(path) -> str:
    if len(path) > 1 and path[-1] == _VARIABLE_VALUE:
        path = path[:-1]
    return "/".join(_part(key) for key in path)


def _part(key) -> str:
    match key:
        case DictKey(key=part) | FlattenedIndexKey(key=part):
            return str(part)
        case GetAttrKey(name=part):
            return part
        case SequenceKey(idx=part):
            return str(part)
    raise TypeError(f"no name for the path entry {key!r}")

"""Layers that save the values named in `maverick_jax.saved` for the backward pass, which recomputes the rest."""

from collections.abc import Callable
from typing import Any

import jax

from maverick_jax.saved import EVERYTHING, Saved

_VIEWS = frozenset(
    [
        "all_gather",
        "all_gather_reduced",
        "broadcast_in_dim",
        "convert_element_type",
        "name",
        "pcast",
        "pvary",
        "reshape",
        "reshard",
        "slice",
        "squeeze",
        "transpose",
    ]
)
DEVICE, HOST = "device", "pinned_host"
"""JAX's names of the memories of an accelerator and of its host."""


def remat(layer: Callable[..., Any], saved: Saved) -> Callable[..., Any]:
    """`layer` with a backward pass that finds what `saved` says. It always finds the arguments, unless the layer names
    one that is offloaded."""
    return jax.checkpoint(layer, policy=policy(saved))


def policy(saved: Saved) -> Callable[..., Any]:
    """The `policy` of `jax.checkpoint`.

    `everything` saves computed values, but no views of them. In particular, it does not save cast or gathered weights,
    which would otherwise stay in memory for every layer until the backward pass, and no value a second time because it
    has a name. Integers that have an offloaded name, such as the places of rows, stay on the device: they are small.
    """
    policies = jax.checkpoint_policies
    kept = policies.save_only_these_names(*saved.keep, *saved.offload)
    moved = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=saved.offload,
        offload_src=DEVICE,
        offload_dst=HOST,
    )

    def decide(primitive, *inputs, **params):
        if primitive.name != "name":
            return EVERYTHING in saved.keep and primitive.name not in _VIEWS
        if params["name"] in saved.offload and all(jax.numpy.issubdtype(x.dtype, jax.numpy.floating) for x in inputs):
            return moved(primitive, *inputs, **params)
        return kept(primitive, *inputs, **params)

    return decide

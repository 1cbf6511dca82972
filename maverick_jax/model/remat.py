"""Which values the forward pass saves for the backward pass, by `ModelConfig.remat`. The layers apply this table, and
`maverick plan` counts its bytes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from maverick_jax.ops.attention import ATTENTION
from maverick_jax.ops.exchange import RECEIVED

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


def _save_results(primitive, *_, **__) -> bool:
    """Saves computed values, but no views of them. In particular, it does not save cast or gathered weights, which
    would otherwise stay in memory for every layer until the backward pass."""
    return primitive.name not in _VIEWS


def _save_products(primitive, *avals, **params) -> bool:
    """Saves products with weights; of one that is a partial sum over devices, the device's own tokens of the sum."""
    if primitive.name == "unreduced_reduce_scatter":
        return True
    out = params.get("out_sharding")
    if out is not None and out.spec.unreduced:
        return False
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)


class Widths(NamedTuple):
    """Elements per token of the values inside one layer, on one device."""

    model: int
    """The residual stream; less than the model's width if its positions are split between blocks."""
    heads: int
    """Queries or attention's output."""
    kv: int
    """Keys or values."""
    hidden: float
    """Hidden units of the feed-forward networks that a token passes through."""
    rows: int
    """Inputs or outputs of the routed experts."""
    received: float
    """Room for the rows that a device receives from others for its experts; 0: it has all experts."""


class Policy(NamedTuple):
    """One choice of `ModelConfig.remat`."""

    save: Callable[..., Any]
    """The `policy` of `jax.checkpoint`."""
    kept: Callable[[Widths], float]
    """Elements per token that a layer's forward pass saves for its backward pass: always the residual stream at its
    input, and never attention scores, which are fused or blocked."""
    recomputes: bool = True
    """Whether the backward pass recomputes anything."""
    repeats_communication: bool = False
    """Whether the backward pass repeats what the layer's forward pass sent, as far as it needs what came."""
    saves_sums: bool = False
    """Whether the forward pass saves the sums that end attention, and the backward pass does not repeat them."""


def _dots(w: Widths) -> float:
    """Saves the result of every matrix product."""
    return w.model + w.heads + 2 * w.kv + w.heads + w.model + 2 * w.hidden + w.model + 2 * w.rows + w.received


def _all(w: Widths) -> float:
    """Saves norms with their float32 inputs, heads rotated in float32, hidden units before and after their activation,
    and rows sent to and from the experts."""
    norms, rotated = 2 * w.model + 2 * 3 * w.model, 2 * (w.heads + w.kv)
    return norms + w.heads + 2 * w.kv + rotated + w.heads + w.model + 5 * w.hidden + 4 * w.rows + w.received + w.model


_policies = jax.checkpoint_policies

POLICIES = {
    "none": Policy(_save_results, _all, recomputes=False, saves_sums=True),
    "dots": Policy(
        _policies.save_from_both_policies(_save_products, _policies.save_only_these_names(RECEIVED)),
        _dots,
        saves_sums=True,
    ),
    "attention": Policy(
        _policies.save_only_these_names(ATTENTION, RECEIVED), kept=lambda w: w.model + w.heads + w.received
    ),
    "full": Policy(_policies.nothing_saveable, kept=lambda w: w.model, repeats_communication=True),
}

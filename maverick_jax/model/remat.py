"""What the backward pass finds saved and what it computes again, by `ModelConfig.remat`; one table for the layers that
apply it and for the plan that counts its bytes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

ATTENTION = "attention"
"""Name of attention's output among the values of a layer; see `jax.ad_checkpoint.checkpoint_name`."""

_VIEWS = frozenset(
    [
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
    """Save what was computed, not another view of what is there: a cast or gathered weight, above all, which would
    otherwise be kept whole, for every layer, from the forward pass to the backward."""
    return primitive.name not in _VIEWS


class Widths(NamedTuple):
    """Elements per token of the values inside one layer, on one device."""

    model: int
    """The residual stream."""
    heads: int
    """Queries, or attention's output."""
    kv: int
    """Keys, or values."""
    hidden: float
    """Hidden units of the feed-forward networks that a token passes through."""
    rows: int
    """Inputs, or outputs, of the routed experts."""


class Policy(NamedTuple):
    """One choice of `ModelConfig.remat`."""

    save: Callable[..., Any]
    """As `jax.checkpoint` takes it."""
    kept: Callable[[Widths], float]
    """Elements per token that a layer's forward pass leaves for its backward pass: always the residual stream at its
    input. Attention scores never: they are fused or blocked."""
    recomputes: bool = True
    """Whether the backward pass computes anything again."""
    repeats_communication: bool = False
    """Whether the backward pass repeats what the layer's forward pass sends."""


def _dots(w: Widths) -> float:
    """Every matrix product's result."""
    return w.model + w.heads + 2 * w.kv + w.heads + w.model + 2 * w.hidden + w.model + 2 * w.rows


def _all(w: Widths) -> float:
    """Norms with their float32 inputs, heads rotated in float32, hidden units before and after their activation, rows
    on their way to and from the experts."""
    norms, rotated = 2 * w.model + 2 * 3 * w.model, 2 * (w.heads + w.kv)
    return norms + w.heads + 2 * w.kv + rotated + w.heads + w.model + 5 * w.hidden + 4 * w.rows + w.model


POLICIES = {
    "none": Policy(_save_results, _all, recomputes=False),
    "dots": Policy(jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _dots),
    "attention": Policy(jax.checkpoint_policies.save_only_these_names(ATTENTION), kept=lambda w: w.model + w.heads),
    "full": Policy(jax.checkpoint_policies.nothing_saveable, kept=lambda w: w.model, repeats_communication=True),
}

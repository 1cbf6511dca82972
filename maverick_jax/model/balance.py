"""The loss-free balance bias (arXiv 2408.15664): each step moves it against the load; it gets no gradient."""

import jax
import jax.numpy as jnp

from maverick_jax.model.moe import RouterStats
from maverick_jax.model.transformer import Maverick
from maverick_jax.parameters import ROUTER_BIAS


def move_router_bias(model: Maverick, stats: RouterStats | None) -> Maverick:
    """The model with each router bias moved one step toward balance, by the load of the whole batch. A model without
    such biases is returned as it is."""
    balance = model.config.balance
    if stats is None or balance.kind != "loss_free_bias":
        return model
    step = balance.bias_rate * jnp.sign(jnp.mean(stats.load, axis=-1, keepdims=True) - stats.load)
    stack, rows = model.config.stack, {layer: row for row, layer in enumerate(model.config.moe_layers)}

    def moved(path, leaf: jax.Array) -> jax.Array:
        parts = [str(getattr(key, "name", key)) for key in path]
        found = stack.find("/".join(parts))
        if found is None or ROUTER_BIAS not in parts:
            return leaf
        mine = [rows[layer] for layer in found[0].layers]
        if not found[0].stacked:
            return leaf + step[mine[0]]
        # layers repeat with the period, so the rows of one slot are evenly spaced
        width = mine[1] - mine[0] if len(mine) > 1 else 1
        return leaf + step[mine[0] : mine[-1] + 1 : width]

    return jax.tree_util.tree_map_with_path(moved, model)

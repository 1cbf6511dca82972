"""The loss-free balance bias (arXiv 2408.15664): moved against the load after each step, never by a gradient."""

import jax
import jax.numpy as jnp

from maverick_jax.model.moe import RouterStats
from maverick_jax.model.transformer import Maverick


def move_router_bias(model: Maverick, stats: RouterStats | None) -> Maverick:
    """The model with each router bias a step nearer to balance, by the load of the whole batch; without such biases,
    the model itself."""
    balance = model.config.balance
    if stats is None or balance.kind != "loss_free_bias":
        return model
    step = balance.bias_rate * jnp.sign(jnp.mean(stats.load, axis=-1, keepdims=True) - stats.load)
    slots = [i for i, spec in enumerate(model.config.period) if spec.moe]
    stacked = model.config.num_periods * len(slots)

    def moved(path, leaf):
        run, layer, *names = (str(getattr(key, "name", key)) for key in path)
        if "router_bias" not in names:
            return leaf
        slot = slots.index(int(layer.removeprefix("layer_")))
        if run == "tail":
            return leaf + step[stacked + slot]
        return leaf + step[:stacked].reshape(-1, len(slots), step.shape[-1])[:, slot]

    return jax.tree_util.tree_map_with_path(moved, model)

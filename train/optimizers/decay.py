"""Decoupled weight decay (arXiv 1711.05101) of weight matrices only, by the names of parameters."""

import jax
import optax

UNDECAYED = (
    *("norm", "attention_norm", "mlp_norm", "router_bias", "embed"),
    *("norm_pre", "norm_post", "class_embedding", "positions", "q_bias", "k_bias", "v_bias", "o_bias"),
    *("fc1_bias", "fc2_bias", "gain", "loop_gain"),
)


def is_decayed(path: tuple) -> bool:
    """Whether the parameter at this tree path is decayed, by the name the model gives it."""
    parts = [part for key in path for part in str(getattr(key, "name", getattr(key, "key", ""))).split("/")]
    return not any(part in UNDECAYED for part in parts)


def decay_weights() -> optax.GradientTransformationExtraArgs:
    """Adds rates["weight_decay"] * parameter to the update of every decayed parameter. By role, not by rank: stacked
    norms are 2-D."""

    def update(updates, state, params=None, *, rates, **_):
        rate = rates["weight_decay"]
        decayed = lambda path, u, p: u + rate.astype(u.dtype) * p.astype(u.dtype) if is_decayed(path) else u
        return jax.tree_util.tree_map_with_path(decayed, updates, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

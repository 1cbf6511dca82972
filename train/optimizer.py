"""AdamW, with decay by parameter role, of the parameters that are trained."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from maverick_jax.config import Dtype
from maverick_jax.section import Section
from train.schedule import learning_rate
from train.selection import Role, select


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What turns gradients into updates."""

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    """Learning rate, by the number of updates done."""
    freeze: tuple[Role, ...] = ()
    """Parts of the model that are not trained."""

    def init(self, model, heads: dict[str, Any]) -> optax.OptState:
        """State before the first step, of the trained parameters only."""
        return self.transform.init(select(model, heads, self.freeze))


class OptimizerConfig(Section):
    """The `optimizer` section."""

    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Updates over which the learning rate rises linearly to its peak."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warmup."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of all steps in which `wsd` decays."""
    min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate over peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of weight matrices; norms, router biases and the embedding table are not decayed."""
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global L2 norm; null: never."""
    accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Microbatches per update; the result is that of the whole batch at once."""
    mu_dtype: Dtype = "float32"
    """What the first moment is kept in; sums are float32."""
    nu_dtype: Dtype = "float32"
    """What the second moment is kept in."""
    freeze: tuple[Role, ...] = ("vision",)
    """Parts of the model that stay as they are, to the bit, and have no moments: `vision`, the image encoder."""

    def schedule_of(self, total_steps: int) -> optax.Schedule:
        return learning_rate(
            self.schedule, self.learning_rate, self.warmup_steps, total_steps, self.decay_fraction, self.min_ratio
        )

    def build(self, total_steps: int) -> Optimizer:
        """AdamW (arXiv 1711.05101) after clipping, for a run of `total_steps`."""
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        schedule = self.schedule_of(total_steps)
        transform = optax.chain(
            *clip,
            scale_by_adam(self.b1, self.b2, self.eps, self.mu_dtype, self.nu_dtype),
            decay_weights(self.weight_decay),
            optax.scale_by_learning_rate(schedule),
        )
        return Optimizer(transform, schedule, self.freeze)


def scale_by_adam(b1: float, b2: float, eps: float, mu_dtype: Dtype, nu_dtype: Dtype) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980). `optax.scale_by_adam`, but each moment is kept in a dtype of its own."""

    def init(params):
        zeros = lambda dtype: jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros(nu_dtype))

    def update(updates, state, params=None):
        count = optax.safe_increment(state.count)
        steps = count.astype(jnp.float32)
        mean = lambda b, old, new: jax.tree.map(lambda m, g: b * m.astype(jnp.float32) + (1 - b) * g, old, new)
        squares = jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), updates)
        mu = mean(b1, state.mu, jax.tree.map(lambda g: g.astype(jnp.float32), updates))
        nu = mean(b2, state.nu, squares)
        direction = lambda m, v: (m / (1 - b1**steps)) / (jnp.sqrt(v / (1 - b2**steps)) + eps)
        kept = lambda tree, dtype: jax.tree.map(lambda x: x.astype(dtype), tree)
        new_state = optax.ScaleByAdamState(count, kept(mu, mu_dtype), kept(nu, nu_dtype))
        return jax.tree.map(direction, mu, nu), new_state

    return optax.GradientTransformation(init, update)


UNDECAYED = (
    *("norm", "attention_norm", "mlp_norm", "router_bias", "embed"),
    *("norm_pre", "norm_post", "class_embedding", "positions", "q_bias", "k_bias", "v_bias", "o_bias"),
    *("fc1_bias", "fc2_bias"),
)


def is_decayed(path: tuple) -> bool:
    """Whether the parameter at this tree path is decayed, by the name the model gives it."""
    parts = [part for key in path for part in str(getattr(key, "name", getattr(key, "key", ""))).split("/")]
    return not any(part in UNDECAYED for part in parts)


def decay_weights(rate: float) -> optax.GradientTransformation:
    """Add rate * parameter to the update of every decayed parameter. By role, not by rank: stacked norms are 2-D."""

    def update(updates, params):
        decayed = lambda path, u, p: u + rate * p.astype(u.dtype) if is_decayed(path) else u
        return jax.tree_util.tree_map_with_path(decayed, updates, params)

    return optax.stateless(update)

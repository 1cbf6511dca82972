"""AdamW (arXiv 1711.05101): Adam's direction (arXiv 1412.6980) with decoupled weight decay."""

from collections.abc import Mapping
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax
from pydantic import Field

from maverick_jax.accounting.layout import BYTES
from maverick_jax.network import Dtype
from maverick_jax.parameters import Parameter
from train.optimizers.base import OPTIMIZERS, OptimizerBase


class AdamFields(OptimizerBase):
    """The fields of Adam's direction."""

    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    mu_dtype: Dtype = "float32"
    """Dtype in which the first moment is stored; sums are float32."""
    nu_dtype: Dtype = "float32"
    """Dtype in which the second moment is stored."""

    def adam(self) -> optax.GradientTransformation:
        return scale_by_adam(self.b1, self.b2, self.eps, self.mu_dtype, self.nu_dtype)

    def moment_bytes(self, parameter: Parameter | None) -> int:
        return BYTES[self.mu_dtype] + BYTES[self.nu_dtype]


@OPTIMIZERS.register
class AdamW(AdamFields):
    """AdamW: the default optimizer."""

    kind: Literal["adamw"] = "adamw"

    def direction(self, declared: Mapping[str, Parameter]) -> optax.GradientTransformation:
        return self.adam()


def scale_by_adam(b1: float, b2: float, eps: float, mu_dtype: Dtype, nu_dtype: Dtype) -> optax.GradientTransformation:
    """Adam's direction (arXiv 1412.6980): `optax.scale_by_adam`, with a separate dtype for each stored moment."""

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

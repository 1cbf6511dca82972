"""Parameters that are born sharded, and the one place where a stored parameter becomes one that is multiplied with."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import reshard

from maverick_jax.sharding import ShardingRules


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Callable,
    rules: ShardingRules,
    dtype: str,
) -> nnx.Param:
    """A parameter of `shape` and `dtype`, one logical axis (or None) per dimension.

    The initialiser is given the sharding, so that each device makes its own part and no device the whole.
    """
    value = init(rngs.params(), shape, jnp.dtype(dtype), out_sharding=rules.storage(*axes))
    return nnx.Param(value, axes=axes)


class Overlay(abc.ABC):
    """What may stand in a parameter's place, as a node of the model's tree; see `maverick_jax.model.overlays`."""

    @abc.abstractmethod
    def weight(self, rules: ShardingRules, dtype: str | jnp.dtype) -> jax.Array:
        """What the parameter would be multiplied as; see `weight`."""


def weight(parameter: nnx.Param | Overlay, rules: ShardingRules, dtype: str | jnp.dtype) -> jax.Array:
    """The parameter as it is multiplied with: in `dtype`, gathered over the axes that only storage splits.

    The cast comes first, so that the gather moves bytes of the compute type; its transpose is the reduce-scatter
    of the gradient.
    """
    if isinstance(parameter, Overlay):
        return parameter.weight(rules, dtype)
    return reshard(parameter[...].astype(jnp.dtype(dtype)), rules.compute(*parameter.get_metadata("axes")))


normal = nnx.initializers.normal
ones = nnx.initializers.ones
zeros = nnx.initializers.zeros

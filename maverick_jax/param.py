"""Creates sharded parameters, and gathers a stored parameter for use in a matrix product."""

import abc
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec, reshard

from maverick_jax.network import Network
from maverick_jax.parameters import Axes, Parameter
from maverick_jax.sharding import ShardingRules
from maverick_jax.width import initial_factor


def build(
    module: nnx.Module, table: Iterable[Parameter], config: Network, rules: ShardingRules, rngs: nnx.Rngs
) -> None:
    """Creates the parameters that `table` declares, as attributes of `module` by their names."""
    for p in table:
        made = param(rngs, p.shape, p.axes, _initializer(p, config), rules, p.dtype or config.param_dtype)
        setattr(module, p.name, made)


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: Axes,
    init: Callable,
    rules: ShardingRules,
    dtype: str,
) -> nnx.Param:
    """A parameter of `shape` and `dtype`, with one logical axis (or None) per dimension.

    The initializer gets the sharding, so that each device creates its own shard and no device the whole array.
    """
    value = init(rngs.params(), shape, jnp.dtype(dtype), out_sharding=rules.storage(*axes))
    return nnx.Param(value, axes=axes)


def _initializer(p: Parameter, config: Network) -> Callable:
    deviation = config.initializer_range * initial_factor(p, config)
    match p.init:
        case "normal":
            return normal(deviation)
        case "residual":
            return normal(deviation * (2 * config.num_hidden_layers) ** -0.5)
        case "ones":
            return nnx.initializers.ones
        case "zeros":
            return nnx.initializers.zeros


class Overlay(abc.ABC):
    """A node of the model's tree that stands in for a parameter; see `maverick_jax.model.overlays`."""

    @abc.abstractmethod
    def stored(self, rules: ShardingRules, dtype: str | jnp.dtype) -> tuple[jax.Array, PartitionSpec]:
        """What `stored` would return for the parameter; in `dtype`."""


def weight(parameter: nnx.Param | Overlay, rules: ShardingRules, dtype: str | jnp.dtype) -> jax.Array:
    """The parameter for a matrix product: in `dtype`, gathered over the mesh axes that shard it only in storage.

    The cast comes first, so that the gather sends values of the compute dtype.
    """
    w, use = stored(parameter, rules, dtype)
    return reshard(w.astype(jnp.dtype(dtype)), use)


def stored(
    parameter: nnx.Param | Overlay, rules: ShardingRules, dtype: str | jnp.dtype
) -> tuple[jax.Array, PartitionSpec]:
    """The parameter as it is stored, and its spec in products: for operations that gather it in `dtype` themselves, and
    send its gradient back to the shards."""
    if isinstance(parameter, Overlay):
        return parameter.stored(rules, dtype)
    return parameter[...], rules.compute(*parameter.get_metadata("axes"))


normal = nnx.initializers.normal

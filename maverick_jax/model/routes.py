"""Replay of routes: tokens go to the experts that an earlier pass chose, with the scores of the routers as they are."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.ops.stages import num_stages


@dataclasses.dataclass(frozen=True)
class RoutesByLayer:
    """Routes as the layers read them; None: there are no such layers with experts."""

    periods: jax.Array | None
    """int16[P, L, B, T, k]: of the L layers with experts of each of P periods."""
    tail: jax.Array | None
    """int16[L, B, T, k]"""

    @classmethod
    def of(cls, config: ModelConfig, routes: jax.Array | None, spec: PartitionSpec) -> "RoutesByLayer | None":
        """The routes int16[B, T, L, k] of all L layers with experts, split as the residual stream of `spec` [B, T].
        Raises InputError for another shape, in a pipeline, and where layers run several times."""
        if routes is None:
            return None
        layers, k = len(config.moe_layers), config.num_experts_per_tok
        if routes.shape[2:] != (layers, k):
            raise InputError(f"routes: {routes.shape}; expected [B, T, {layers}, {k}]: layers with experts, top-k")
        if num_stages() > 1 or config.loops is not None:
            raise InputError(
                "routes: not with mesh.pipeline or model.loops, whose layers would need those of each turn"
            )
        routes = jnp.moveaxis(reshard(routes, PartitionSpec(*spec, None, None)), 2, 0)
        stacked = sum(layer < config.stack.num_stacked for layer in config.moe_layers)
        periods = tail = None
        if stacked:
            periods = routes[:stacked].reshape(config.num_periods, -1, *routes.shape[1:])
        if stacked < layers:
            tail = routes[stacked:]
        return cls(periods, tail)

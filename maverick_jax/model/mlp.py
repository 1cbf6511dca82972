"""The SwiGLU feed-forward network of dense layers, and the shared expert."""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import gated_linear_of, linear_of
from maverick_jax.ops.stream import sums_spec
from maverick_jax.param import build
from maverick_jax.parameters import Table
from maverick_jax.saved import MLP
from maverick_jax.sharding import ShardingRules


class Mlp(nnx.Module):
    """(silu(x gate) * (x up)) down (arXiv 2002.05202). `table` declares the parameters: `parameters.dense` or
    `parameters.shared`."""

    gate: nnx.Param
    up: nnx.Param
    down: nnx.Param

    def __init__(self, config: ModelConfig, table: Table, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.rules, self.matmul_dtype = rules, config.matmul_dtype
        build(self, table, config, rules, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D], normalized, of whole positions -> [B, T, D], partial sums as `ops.stream` says."""
        product = lambda w: checkpoint_name(linear_of(x, w, self.rules, self.matmul_dtype), MLP)
        gate, up = product(self.gate), product(self.up)
        out = sums_spec(self.rules, x.shape[1])
        return gated_linear_of(gate, up, self.down, self.rules, self.matmul_dtype, out=out)

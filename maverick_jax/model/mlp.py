"""The SwiGLU feed-forward network of dense layers, and the shared expert."""

import jax
from flax import nnx

from maverick_jax.config import ModelConfig
from maverick_jax.model.overlays import gated_linear_of, linear_of
from maverick_jax.param import normal, param
from maverick_jax.sharding import ShardingRules


class Mlp(nnx.Module):
    """(silu(x gate) * (x up)) down, of hidden width F (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig, width: int, rules: ShardingRules, *, rngs: nnx.Rngs):
        D, F, dtype = config.hidden_size, width, config.param_dtype
        init = normal(config.initializer_range)
        init_out = normal(config.initializer_range * (2 * config.num_hidden_layers) ** -0.5)
        self.rules = rules
        self.gate = param(rngs, (D, F), ("embed", "mlp"), init, rules, dtype)
        self.up = param(rngs, (D, F), ("embed", "mlp"), init, rules, dtype)
        self.down = param(rngs, (F, D), ("mlp", "embed"), init_out, rules, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D], normalised -> [B, T, D]."""
        gate, up = (linear_of(x, w, self.rules) for w in (self.gate, self.up))
        out = self.rules("batch", "length", "residual")
        return gated_linear_of(gate, up, self.down, self.rules, out=out)

"""One transformer layer, and a run of them."""

import jax
import jax.numpy as jnp
from flax import nnx

from maverick_jax.config import LayerSpec, ModelConfig
from maverick_jax.model.attention import Attention, Places
from maverick_jax.model.mlp import Mlp
from maverick_jax.model.moe import Moe, RouterStats
from maverick_jax.model.norm import rms_norm
from maverick_jax.param import ones, param
from maverick_jax.sharding import ShardingRules

_VIEWS = frozenset(
    [
        "broadcast_in_dim",
        "convert_element_type",
        "name",
        "pcast",
        "pvary",
        "reshape",
        "reshard",
        "slice",
        "squeeze",
        "transpose",
    ]
)


def _save_results(primitive, *_, **__) -> bool:
    """Save what was computed, not another view of what is there: a cast or gathered weight, above all, which would
    otherwise be kept whole, for every layer, from the forward pass to the backward."""
    return primitive.name not in _VIEWS


REMAT_POLICIES = {
    "none": _save_results,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass finds saved, by `ModelConfig.remat`."""


class Layer(nnx.Module):
    """x + attention(norm(x)), then + feed-forward(norm(x)); the feed-forward is dense or a mixture of experts."""

    def __init__(self, config: ModelConfig, spec: LayerSpec, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.spec = config, spec
        scale = lambda: param(rngs, (config.hidden_size,), (None,), ones, rules, config.param_dtype)
        self.attention_norm, self.mlp_norm = scale(), scale()
        self.attention = Attention(config, spec.rope, rules, rngs=rngs)
        if spec.moe:
            self.moe = Moe(config, rules, rngs=rngs)
        else:
            self.mlp = Mlp(config, config.intermediate_size_mlp, rules, rngs=rngs)

    def __call__(self, x: jax.Array, places: Places, real: jax.Array | None) -> tuple[jax.Array, RouterStats | None]:
        """x [B, T, D] -> [B, T, D] and, for a mixture of experts, what its router did."""
        return self.feed_forward(x + self.attention(self.attention_input(x), places), real)

    def attention_input(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.attention_norm[...], self.config.rms_norm_eps)

    def feed_forward(self, x: jax.Array, real: jax.Array | None) -> tuple[jax.Array, RouterStats | None]:
        """The second half of the layer: x [B, T, D] after attention -> as `__call__`."""
        h = rms_norm(x, self.mlp_norm[...], self.config.rms_norm_eps)
        if self.spec.moe:
            h, stats = self.moe(h, real)
            return x + h, stats
        return x + self.mlp(h), None


class Period(nnx.Module):
    """A run of layers side by side, `layer_0`, `layer_1`, ...: one repetition of the pattern, or its remainder."""

    def __init__(self, config: ModelConfig, pattern: tuple[LayerSpec, ...], rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.depth = config, len(pattern)
        for i, spec in enumerate(pattern):
            setattr(self, f"layer_{i}", Layer(config, spec, rules, rngs=rngs))

    @property
    def layers(self) -> list[Layer]:
        return [getattr(self, f"layer_{i}") for i in range(self.depth)]

    def __call__(self, x: jax.Array, places: Places, real: jax.Array | None) -> tuple[jax.Array, RouterStats | None]:
        """x [B, T, D] -> [B, T, D] and the stacked stats of the mixture-of-experts layers, if there are any."""
        policy = REMAT_POLICIES[self.config.remat]
        apply = jax.checkpoint(lambda layer, x, places, real: layer(x, places, real), policy=policy)
        stats = []
        for layer in self.layers:
            x, found = apply(layer, x, places, real)
            stats += [found] if found is not None else []
        return x, jax.tree.map(lambda *s: jnp.stack(s), *stats) if stats else None

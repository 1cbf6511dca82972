"""One transformer layer, and a run of them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maverick_jax.config import LayerSpec, ModelConfig
from maverick_jax.model.attention import Attention, Places
from maverick_jax.model.mlp import Mlp
from maverick_jax.model.moe import Moe, Routed, RouterStats
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

    def __call__(self, x: jax.Array, places: Places, real: jax.Array | None) -> tuple[jax.Array, Routed | None]:
        """x [B, T, D] -> [B, T, D] and, for a mixture of experts, what its router did."""
        return self.feed_forward(x + self.attention(self.attention_input(x), places), real)

    def attention_input(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.attention_norm[...], self.config.rms_norm_eps)

    def feed_forward(self, x: jax.Array, real: jax.Array | None) -> tuple[jax.Array, Routed | None]:
        """The second half of the layer: x [B, T, D] after attention -> as `__call__`."""
        h = rms_norm(x, self.mlp_norm[...], self.config.rms_norm_eps)
        if self.spec.moe:
            h, routed = self.moe(h, real)
            return x + h, routed
        return x + self.mlp(h), None


@dataclasses.dataclass(frozen=True)
class Taps:
    """Layers whose insides are wanted beside the result, counted from 0."""

    hidden: tuple[int, ...] = ()
    """Whose output is."""
    router: tuple[int, ...] = ()
    """Whose router logits are; each a mixture of experts."""

    def within(self, layers: range, period: int) -> "Taps":
        """Those among `layers`, as their places in a run of `period` layers that begins at the first of these."""
        places = lambda chosen: tuple(sorted({(i - layers.start) % period for i in chosen if i in layers}))
        return Taps(places(self.hidden), places(self.router))


class Seen(NamedTuple):
    """What a run of layers shows of itself, by a layer's place in it; of a scan, with a leading axis of periods."""

    stats: RouterStats | None
    """Of its mixture-of-experts layers, stacked; None where there are none."""
    hidden: dict[int, jax.Array]
    """[B, T, D] in the compute dtype."""
    router: dict[int, jax.Array]
    """float32[B, T, E]."""


class Period(nnx.Module):
    """A run of layers side by side, `layer_0`, `layer_1`, ...: one repetition of the pattern, or its remainder."""

    def __init__(self, config: ModelConfig, pattern: tuple[LayerSpec, ...], rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.depth = config, len(pattern)
        for i, spec in enumerate(pattern):
            setattr(self, f"layer_{i}", Layer(config, spec, rules, rngs=rngs))

    @property
    def layers(self) -> list[Layer]:
        return [getattr(self, f"layer_{i}") for i in range(self.depth)]

    def __call__(self, x: jax.Array, places: Places, real: jax.Array | None, taps: Taps) -> tuple[jax.Array, Seen]:
        """x [B, T, D] -> [B, T, D], and what `taps` ask for by place in this run."""
        policy = REMAT_POLICIES[self.config.remat]
        apply = jax.checkpoint(lambda layer, x, places, real: layer(x, places, real), policy=policy)
        outputs, routed = [], []
        for layer in self.layers:
            x, found = apply(layer, x, places, real)
            outputs.append(x)
            routed.append(found)
        stats = [found.stats for found in routed if found is not None]
        stats = jax.tree.map(lambda *s: jnp.stack(s), *stats) if stats else None
        return x, Seen(stats, {i: outputs[i] for i in taps.hidden}, {i: routed[i].logits for i in taps.router})

"""One transformer layer, and a period of layers."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.attention import Attention, Positions
from maverick_jax.model.mlp import Mlp
from maverick_jax.model.moe import Moe, Routed, RouterStats
from maverick_jax.model.norm import rms_norm
from maverick_jax.model.reasoning_heads import LayerHeads
from maverick_jax.model.remat import remat
from maverick_jax.network import LayerSpec
from maverick_jax.ops.stream import gather_tokens, scatter_tokens
from maverick_jax.param import build
from maverick_jax.saved import INPUT, RESIDUAL
from maverick_jax.sharding import ShardingRules
from maverick_jax.stack import Stack


class Layer(nnx.Module):
    """x + attention(norm(x)), then + feed-forward(norm(x)); the feed-forward is dense or a mixture of experts."""

    attention_norm: nnx.Param
    mlp_norm: nnx.Param

    def __init__(self, config: ModelConfig, spec: LayerSpec, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.spec, self.rules = config, spec, rules
        build(self, parameters.norms(config), config, rules, rngs)
        self.attention = Attention(config, spec.rope, rules, rngs=rngs)
        if spec.reasoning:
            self.reasoning = LayerHeads(config, rules, rngs=rngs)
        if spec.moe:
            self.moe = Moe(config, rules, rngs=rngs)
        else:
            self.mlp = Mlp(config, parameters.dense(config), rules, rngs=rngs)

    def __call__(
        self, x: jax.Array, positions: Positions, real: jax.Array | None, routes: jax.Array | None = None
    ) -> tuple[jax.Array, Routed | None]:
        """x [B, T, D] -> [B, T, D] and, for a mixture of experts, its router's outputs. routes: as `Moe` takes them."""
        x = checkpoint_name(x, INPUT)
        h = self.attention_input(x)
        y = self.attention(h, positions)
        if self.spec.reasoning and positions.marked is not None:
            y += self.reasoning(h, positions.marked)
        return self.feed_forward(x + y, real, routes)

    @jax.named_scope("attention_norm")
    def attention_input(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] of the residual stream -> [B, T, D], normalized, of whole positions."""
        return gather_tokens(rms_norm(x, self.attention_norm[...], self.config.rms_norm_eps), self.rules)

    def feed_forward(
        self, x: jax.Array, real: jax.Array | None, routes: jax.Array | None = None
    ) -> tuple[jax.Array, Routed | None]:
        """The second half of the layer: x [B, T, D] after attention -> the results of `__call__`."""
        x = checkpoint_name(x, RESIDUAL)
        with jax.named_scope("mlp_norm"):
            h = rms_norm(x, self.mlp_norm[...], self.config.rms_norm_eps)
        if self.spec.moe:
            with jax.named_scope("moe"):
                h, routed = self.moe(h, real, routes)
            return x + h, routed
        with jax.named_scope("mlp"):
            return x + scatter_tokens(self.mlp(gather_tokens(h, self.rules)), self.rules), None


@dataclasses.dataclass(frozen=True)
class Taps:
    """Layers, counted from 0, whose intermediate values are returned with the result."""

    hidden: tuple[int, ...] = ()
    """Layers whose output is returned."""
    router: tuple[int, ...] = ()
    """Layers whose router logits are returned; each must be a mixture of experts."""

    def within(self, stack: Stack, run: str) -> "Taps":
        """The layers that lie in `run` (`periods` or `tail`), by their numbers in it."""
        slots = lambda layers: [stack.place(i).slot for i in layers]
        numbers = lambda layers: tuple(sorted({slot.number for slot in slots(layers) if slot.run == run}))
        return Taps(numbers(self.hidden), numbers(self.router))


class Seen(NamedTuple):
    """Intermediate values of a period's layers, by the layer's number in it. A scan adds a leading axis of periods."""

    stats: RouterStats | None
    """Statistics of the mixture-of-experts layers, stacked; None if there is no such layer."""
    hidden: dict[int, jax.Array]
    """[B, T, D] in the compute dtype."""
    router: dict[int, jax.Array]
    """float32[B, T, E]."""


class Period(nnx.Module):
    """The layers `layer_0`, `layer_1`, ... of one period, or of the tail."""

    def __init__(self, config: ModelConfig, pattern: tuple[LayerSpec, ...], rules: ShardingRules, *, rngs: nnx.Rngs):
        self.config, self.depth = config, len(pattern)
        for i, spec in enumerate(pattern):
            setattr(self, f"layer_{i}", Layer(config, spec, rules, rngs=rngs))

    @property
    def layers(self) -> list[Layer]:
        return [getattr(self, f"layer_{i}") for i in range(self.depth)]

    def __call__(
        self, x: jax.Array, positions: Positions, real: jax.Array | None, taps: Taps, routes: jax.Array | None = None
    ) -> tuple[jax.Array, Seen]:
        """x [B, T, D] -> [B, T, D], and the values that `taps` asks for. `taps` counts layers within this period.
        routes int16[L, B, T, k]: of each of its L layers with experts, in their order."""
        outputs, routed = [], []
        given = iter([] if routes is None else routes)
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layer_{i}"):
                run = remat(lambda layer, *inputs: layer(*inputs), self.config.saved(layer.spec))
                x, found = run(layer, x, positions, real, next(given, None) if layer.spec.moe else None)
            outputs.append(x)
            routed.append(found)
        stats = [found.stats for found in routed if found is not None]
        stats = jax.tree.map(lambda *s: jnp.stack(s), *stats) if stats else None
        return x, Seen(stats, {i: outputs[i] for i in taps.hidden}, {i: routed[i].logits for i in taps.router})

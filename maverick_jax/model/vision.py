"""The image encoder of Llama 4: it turns tiles of pixels into rows of the text model's embedding.

A tile is cut into patches, which go through a bidirectional transformer; each 2 x 2 patches then become one token
(pixel shuffle), and adapter and projector bring it to the text model's width. Early fusion: the rows replace the
embeddings of `<|patch|>` tokens (`maverick_jax.model.tiles`). Tiles are encoded independently of each other.

N tiles, S side of a tile in pixels, P image tokens per tile, Q patches and the class token, W width of the encoder,
A width of the adapter.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec, reshard

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.model.norm import layer_norm
from maverick_jax.model.remat import remat
from maverick_jax.model.rope import apply_rope
from maverick_jax.model.tiles import encoder_of, normalized
from maverick_jax.network import VisionConfig
from maverick_jax.ops.affine import shifted
from maverick_jax.ops.attention import attention_unmasked
from maverick_jax.ops.linear import linear
from maverick_jax.param import build, stored
from maverick_jax.saved import ATTENTION, INPUT, MLP, QKV, RESIDUAL
from maverick_jax.sharding import ShardingRules

NORM_EPS = 1e-5
"""Epsilon of the layer norms. It is a constant in the public implementation too."""


class VisionTower(nnx.Module):
    """pixels [N, C, S, S] -> rows [N, P, D] of the text model's embedding."""

    patch: nnx.Param
    class_embedding: nnx.Param
    positions: nnx.Param
    adapter_in: nnx.Param
    adapter_out: nnx.Param
    projector: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        vision = encoder_of(config)
        self.config, self.rules = config, rules
        build(self, parameters.vision_input(vision), config, rules, rngs)
        self.norm_pre, self.norm_post = (LayerNorm(config, rules, rngs=rngs) for _ in range(2))
        keys = jax.random.split(rngs.params(), vision.num_hidden_layers)
        self.layers = jax.vmap(lambda key: VisionLayer(config, rules, rngs=nnx.Rngs(params=key)))(keys)
        build(self, parameters.vision_output(vision, config.hidden_size), config, rules, rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """pixels [N, C, S, S], uint8 or normalized -> [N, P, D] in the compute dtype."""
        x = self.features(pixels)
        return linear(x, *stored(self.projector, self.rules, x.dtype))

    def features(self, pixels: jax.Array) -> jax.Array:
        """pixels [N, C, S, S] -> the adapter's output [N, P, A]."""
        vision, dtype = encoder_of(self.config), jnp.dtype(self.config.compute_dtype)
        tiles = normalized(reshard(pixels, self.rules("batch", None, None, None)), dtype)
        x = linear(cut_patches(tiles, vision.patch_size), *stored(self.patch, self.rules, dtype))
        x = shifted(self._with_class(x), self.positions[...][None])
        tables = patch_rope_tables(vision)
        encode = remat(lambda layer, x: layer(x, tables), self.config.saved(None))
        x, _ = jax.lax.scan(lambda x, layer: (encode(layer, x), None), self.norm_pre(x), self.layers)
        return self._adapt(pixel_shuffle(self.norm_post(x)[:, :-1], vision))

    def _with_class(self, x: jax.Array) -> jax.Array:
        """Appends the class embedding to the patches: [N, Q-1, W] -> [N, Q, W]."""
        shape, spec = (x.shape[0], 1, x.shape[2]), jax.typeof(x).sharding.spec
        token = shifted(reshard(jnp.zeros_like(x, shape=shape), spec), self.class_embedding[...][None, None])
        return jnp.concatenate([x, token], axis=1)

    @jax.named_scope("adapter")
    def _adapt(self, x: jax.Array) -> jax.Array:
        """Shuffled patches [N, P, F] -> [N, P, A]. The activation follows both layers."""
        first, second = (stored(w, self.rules, x.dtype) for w in (self.adapter_in, self.adapter_out))
        return gelu(linear(gelu(linear(x, *first)), *second, out=self.rules("batch", None, None)))


class VisionLayer(nnx.Module):
    """x + attention(norm(x)), then + feed-forward(norm(x)); every linear map has a bias."""

    q: nnx.Param
    k: nnx.Param
    v: nnx.Param
    q_bias: nnx.Param
    k_bias: nnx.Param
    v_bias: nnx.Param
    o: nnx.Param
    o_bias: nnx.Param
    fc1: nnx.Param
    fc1_bias: nnx.Param
    fc2: nnx.Param
    fc2_bias: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        self.rules = rules
        self.attention_norm, self.mlp_norm = (LayerNorm(config, rules, rngs=rngs) for _ in range(2))
        build(self, parameters.vision_layer(encoder_of(config)), config, rules, rngs)

    def __call__(self, x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
        """x [N, Q, W] -> [N, Q, W]; `tables` from `patch_rope_tables`."""
        x = checkpoint_name(x, INPUT)
        with jax.named_scope("attention"):
            x = checkpoint_name(x + self._attention(self.attention_norm(x), tables), RESIDUAL)
        with jax.named_scope("mlp"):
            return x + self._feed_forward(self.mlp_norm(x))

    def _attention(self, x, tables):
        rules, heads = self.rules, self.rules("batch", None, "heads", None)
        projections = ((self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias))
        q, k, v = (self._affine(x, w, b) for w, b in projections)
        q, k = apply_rope(q, tables), apply_rope(k, tables)
        q, k, v = (checkpoint_name(x, QKV) for x in (q, k, v))
        y = jax.shard_map(attention_unmasked, in_specs=(heads,) * 3, out_specs=heads)(q, k, v)
        y = checkpoint_name(y, ATTENTION)
        return self._affine(y, self.o, self.o_bias, inputs=2, out=rules("batch", None, None))

    def _feed_forward(self, x):
        h = gelu(checkpoint_name(self._affine(x, self.fc1, self.fc1_bias), MLP))
        return self._affine(h, self.fc2, self.fc2_bias, out=self.rules("batch", None, None))

    def _affine(self, x, w, bias, **options):
        y = linear(x, *stored(w, self.rules, x.dtype), **options)
        return shifted(y, bias[...][None, None])


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis."""

    scale: nnx.Param
    bias: nnx.Param

    def __init__(self, config: ModelConfig, rules: ShardingRules, *, rngs: nnx.Rngs):
        build(self, parameters.layer_norm(encoder_of(config)), config, rules, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...], NORM_EPS)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU: x times the cumulative normal distribution, in float32."""
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1.0 + jax.lax.erf(x32 * np.float32(0.5**0.5)))).astype(x.dtype)


def cut_patches(pixels: jax.Array, size: int) -> jax.Array:
    """[N, C, S, S] -> [N, patches, C * size * size]: patches in row order, each flattened as (channel, row, column)."""
    N, C, S, _ = pixels.shape
    side = S // size
    cut = _reshape(pixels, N, C, side, size, side, size).transpose(0, 2, 4, 1, 3, 5)
    return _reshape(cut, N, side * side, C * size * size)


def pixel_shuffle(x: jax.Array, vision: VisionConfig) -> jax.Array:
    """[N, patches, W] -> [N, P, n*n*W]: concatenates the channels of each n x n patches, in row order, to one token."""
    N, _, W = x.shape
    n, side = vision.shuffle, vision.grid // vision.shuffle
    corners = _reshape(x, N, side, n, side, n, W).transpose(0, 1, 3, 2, 4, 5)
    return _reshape(corners, N, side * side, n * n * W)


def _reshape(x: jax.Array, *shape: int) -> jax.Array:
    """Reshapes all axes but that of the tiles, the only sharded one."""
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(jax.typeof(x).sharding.spec[0]))


def patch_rope_tables(vision: VisionConfig) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, float32[1, Q, 1, H/2]: half of each head rotates with the patch's column, half with its row,
    both counted from one. The class token, which is last, is not rotated."""
    quarter = vision.head_dim // 4
    frequency = np.float32(vision.rope_theta) ** -(np.arange(quarter, dtype=np.float32) / np.float32(quarter))
    row, column = np.divmod(np.arange(vision.grid**2, dtype=np.float32), np.float32(vision.grid))
    angles = np.concatenate([np.outer(column + 1, frequency), np.outer(row + 1, frequency)], axis=1)
    angles = np.concatenate([angles, np.zeros((1, 2 * quarter))]).astype(np.float32)[None, :, None, :]
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))

"""The tiles of a batch's pictures: rows own theirs.

`tiles` is [B, M, C, S, S]: the tiles of each row in reading order, the rest padding. M is the same for all rows and
known before compilation. Rows are divided among devices, so each device encodes the tiles of its own rows and puts the
features into its own places: no feature goes to a device that has other rows.

P image tokens per tile; the k-th `<|patch|>` token of a row takes the k-th feature of that row's tiles.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, reshard

from maverick_jax.errors import InputError
from maverick_jax.images import bucket_of, num_patches, pixel_table
from maverick_jax.network import Network, VisionConfig
from maverick_jax.ops.row_split import split_rows, whole_rows
from maverick_jax.ops.stream import stream_spec
from maverick_jax.sharding import ShardingRules


def encoder_of(config: Network) -> VisionConfig:
    """The config of the image encoder. Raises InputError for a text model."""
    if config.vision is None:
        raise InputError("pictures: this model has no image encoder (model.vision is null); expected none")
    return config.vision


def flattened(tiles: jax.Array, rules: ShardingRules) -> jax.Array:
    """tiles [B, M, C, S, S] -> [B M, C, S, S], each device its own rows'."""
    B, M, *rest = tiles.shape
    tiles = reshard(tiles, rules("batch", None, None, None, None))
    return jax.lax.reshape(tiles, (B * M, *rest), out_sharding=rules("batch", None, None, None))


def normalized(pixels: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 values of pixels [N, ...] as the encoder reads them, in `dtype`: looked up, so that they equal what
    `maverick_jax.images.preprocess` computes. Other numbers are taken to be normalized."""
    if pixels.dtype != jnp.uint8:
        return pixels.astype(dtype)
    table = jnp.asarray(pixel_table("bfloat16"), dtype)
    spec = jax.typeof(pixels).sharding.spec
    return table.at[pixels.astype(jnp.int32)].get(mode="promise_in_bounds", out_sharding=spec)


def fuse(embeddings: jax.Array, is_image: jax.Array, features: jax.Array, rules: ShardingRules) -> jax.Array:
    """`embeddings` [B, T, D] with those at `is_image` bool[B, T] replaced: the k-th of a row by the k-th feature of the
    row's own tiles, `features` [B M, P, D]. Those of padding tiles are unused, and have no gradient."""
    counted = jnp.cumsum(whole_rows(is_image, rules), axis=1, dtype=jnp.int32) - 1
    x, tokens = jax.typeof(embeddings).sharding.spec, stream_spec(rules, is_image.shape[1])
    is_image, place = reshard(is_image, tokens), reshard(split_rows(counted, rules), tokens)
    of_rows = rules("batch", None, "residual")

    def local(embeddings, is_image, place, features):
        own = features.reshape(len(embeddings), -1, features.shape[-1])
        found = jnp.take_along_axis(own, jnp.where(is_image, place, 0)[..., None], axis=1, mode="clip")
        return jnp.where(is_image[..., None], found.astype(embeddings.dtype), embeddings)

    program = jax.shard_map(local, in_specs=(x, tokens, tokens, of_rows), out_specs=x)
    return program(embeddings, is_image, place, reshard(features, of_rows))


# ---- from the tiles of a whole batch ---------------------------------------------------------------------------------


def tiles_by_row(config: Network, rows: Sequence[np.ndarray] | jax.Array, pixel_values) -> np.ndarray | None:
    """The tiles of each of `rows` (int[T] token ids, of any lengths), [len(rows), M, C, S, S], from those of all rows
    in reading order, `pixel_values` [N, C, S, S]. M takes few different values, so that few programs are compiled. None
    if there are none.

    Raises InputError unless each row contains one `<|patch|>` for each feature of whole tiles, and all rows N tiles'.
    """
    if pixel_values is None:
        return None
    vision = encoder_of(config)
    shape = (vision.num_channels, vision.image_size, vision.image_size)
    if np.ndim(pixel_values) != 4 or pixel_values.shape[1:] != shape:
        raise InputError(
            f"pixel_values: shape {np.shape(pixel_values)}; expected (tiles, {', '.join(map(str, shape))})"
        )
    P, N = vision.tokens_per_tile, len(pixel_values)
    wanted = num_patches([np.asarray(row) for row in rows], vision.image_token_index)
    if wanted.sum() != N * P:
        raise InputError(
            f"pixel_values: {N} tiles give {N * P} rows of features; tokens contain {wanted.sum()} ids "
            f"{vision.image_token_index} (<|patch|>); expected {P} for each tile"
        )
    if (cut := np.flatnonzero(wanted % P)).size:
        raise InputError(
            f"tokens: row {cut[0]} contains {wanted[cut[0]]} ids {vision.image_token_index} (<|patch|>); expected "
            f"whole tiles, of {P} each"
        )
    if not N:
        return None
    counts, pixel_values = wanted // P, np.asarray(pixel_values)
    found = np.zeros((len(rows), bucket_of(int(counts.max())), *shape), pixel_values.dtype)
    for row, end, count in zip(found, np.cumsum(counts), counts, strict=True):
        row[:count] = pixel_values[end - count : end]
    return found


def traced_tiles_by_row(config: Network, tokens: jax.Array, pixel_values: jax.Array | None) -> jax.Array | None:
    """As `tiles_by_row`, in traced code, where tokens int32[B, T] are not known: each row has room for all N tiles, and
    nothing is checked."""
    if pixel_values is None:
        return None
    vision, N = encoder_of(config), len(pixel_values)
    counts = jnp.sum(tokens == vision.image_token_index, axis=1, dtype=jnp.int32) // vision.tokens_per_tile
    counts = reshard(counts, PartitionSpec(None))
    index = (jnp.cumsum(counts) - counts)[:, None] + jnp.arange(N, dtype=jnp.int32)[None, :]
    whole = reshard(pixel_values, PartitionSpec())
    return whole.at[index].get(mode="clip", out_sharding=PartitionSpec())

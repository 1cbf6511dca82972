"""Attention around a ring of devices equals its twin on whole rows, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops import context
from maverick_jax.ops.attention import MaskSpec, Segments, attention_reference
from maverick_jax.ops.context import Tokens, ring_attention
from maverick_jax.row_split import RowSplit
from tests.helpers.tiny import RULES

B, T, N, K, H = 2, 32, 4, 2, 4
MASKS = [MaskSpec(), MaskSpec("chunked", 5), MaskSpec("sliding_window", 6)]
RINGS = [{"context": 2}, {"context": 8}, {"context": 2, "fsdp": 2, "tensor": 2}]


def arrays(length: int = T, dtype=np.float32):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.normal(size=(B, length, n, H)).astype(dtype) for n in (N, K, K, N))
    return (q, k, v), dout


def segments(length: int = T, *, packed: bool) -> Segments:
    """Documents of many lengths, with padding between and after them; or one document a row."""
    if not packed:
        index = np.arange(length, dtype=np.int32)[None].repeat(B, 0)
        return Segments(index, np.ones_like(index))
    ids = np.array([[1] * 3 + [2] * 11 + [0] * 2 + [3] * (length - 18) + [0] * 2, [1] * (length - 1) + [2]], np.int32)
    starts = np.maximum.accumulate(np.where(np.diff(ids, axis=1, prepend=-1) != 0, np.arange(length), 0), axis=1)
    return Segments(np.where(ids > 0, np.arange(length) - starts, 0).astype(np.int32), ids)


def on_ring(mask: MaskSpec, found: Segments, tile: int, sizes, mesh_of, length: int = T, dtype=np.float32):
    """Output of real tokens and gradients of q, k and v, in the order of rows."""
    qkv, dout = arrays(length, dtype)
    real = found.segment_ids[..., None, None] > 0
    with mesh_of(**sizes):
        split = RowSplit.of(length, RULES, jax.sharding.get_mesh().shape)
        heads, whole = RULES("batch", "length", "heads", None), RULES("batch", None)
        place = lambda x, spec: jax.device_put(split.split(x, 1), spec)
        tokens = Tokens(jax.tree.map(lambda x: place(x, whole), found), jax.device_put(split.places[None], jax.P()))
        specs = heads, heads, heads, jax.tree.map(lambda x: x.sharding.spec, tokens)
        local = functools.partial(ring_attention, axes=("context",), tile=tile)
        ring = jax.shard_map(lambda q, k, v, tokens: local(q, k, v, mask, tokens), in_specs=specs, out_specs=heads)

        @jax.jit
        def both(qkv, tokens, dout):
            out, vjp = jax.vjp(lambda *qkv: ring(*qkv, tokens), *qkv)
            return out, vjp(dout)

        dout = np.where(real, dout, 0).astype(dtype)
        out, gradients = both([place(x, heads) for x in qkv], tokens, place(dout, heads))
        out, gradients = jax.tree.map(lambda x: split.whole(np.asarray(x), 1), (out, gradients))
    return np.where(real, out, 0), gradients


def plain(mask: MaskSpec, found: Segments, length: int = T):
    qkv, dout = arrays(length)
    real = found.segment_ids[..., None, None] > 0
    twin = lambda *qkv: attention_reference(*qkv, mask, jax.tree.map(jnp.asarray, found))
    out, vjp = jax.vjp(twin, *map(jnp.asarray, qkv))
    return np.where(real, out, 0), vjp(jnp.where(real, dout, 0))


@pytest.mark.parametrize("sizes", RINGS, ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one segment"])
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.kind}-{mask.size}")
def test_equals_reference_on_whole_rows(mask, packed, sizes, mesh_of):
    found = segments(packed=packed)
    expected = plain(mask, found)
    for tile in (2, 1024):
        got = on_ring(mask, found, tile, sizes, mesh_of)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), got, expected)


def test_rows_that_blocks_do_not_divide(mesh_of):
    found = segments(30, packed=True)
    got = on_ring(MaskSpec(), found, 4, {"context": 2}, mesh_of, length=30)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-5), got, plain(MaskSpec(), found, 30))


def test_bfloat16_is_rounded_once(mesh_of):
    """Partial results are combined in float32: as far from float32 as one bfloat16 number is from the next."""
    found = segments(packed=True)
    out, gradients = on_ring(MaskSpec(), found, 4, {"context": 4}, mesh_of, dtype=jnp.bfloat16)
    expected, of_expected = plain(MaskSpec(), found)
    for got, wanted in zip((out, *gradients), (expected, *of_expected), strict=True):
        wanted = np.asarray(wanted)
        assert np.abs(got.astype(np.float32) - wanted).max() <= 0.02 * np.abs(wanted).max()


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.kind}-{mask.size}")
def test_skipped_tiles_have_no_visible_pair(mask):
    """Of all pairs of tiles of a packed row, those that are skipped have no query that sees a key; and half are."""
    found, tile = segments(packed=True), 4
    index = np.arange(T, dtype=np.int32)
    seen = np.asarray(
        mask.allows(found.positions[:, :, None], found.positions[:, None, :])
        & (found.segment_ids[:, :, None] == found.segment_ids[:, None, :])
        & (index[None, :, None] >= index[None, None, :])
    )
    if mask.size is not None:  # padding has no positions: only its distance counts
        seen &= np.abs(index[None, :, None] - index[None, None, :]) < mask.size
    of = lambda at: Tokens(jax.tree.map(lambda x: jnp.asarray(x[:, at]), found), jnp.asarray(index[None, at]))
    skipped = 0
    for i in range(0, T, tile):
        for j in range(0, T, tile):
            queries, keys = slice(i, i + tile), slice(j, j + tile)
            may = bool(context._may_see(mask, of(queries), of(keys)))
            assert may or not seen[:, queries, keys].any()
            skipped += not may
    assert skipped >= (T // tile) * (T // tile - 1) // 2

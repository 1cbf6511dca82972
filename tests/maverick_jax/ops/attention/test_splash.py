"""Splash attention up to the kernel: blocks that are skipped, where it is refused, and what it is inside a mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.model.attention import Positions, attend
from maverick_jax.ops.attention import MaskSpec, attention_reference, splash
from maverick_jax.ops.attention.spec import AttentionCase
from maverick_jax.ops.attention.splash import SPLASH, splash_attention, why_not
from maverick_jax.saved import ATTENTION
from maverick_jax.sharding import ShardingRules
from tests.helpers.kernels import attention_by
from tests.maverick_jax.ops.attention.test_attention import both, case_of
from tests.maverick_jax.ops.attention.test_pieces import rows_of

CASE = AttentionCase(MaskSpec("chunked", 8192), True, 4, 8192, 40, 8, 128, "bfloat16")
ROWS = [[70, 250, 64], [-30, 354]]


@pytest.mark.parametrize(
    ("mask", "rows", "skipped"),
    [
        (MaskSpec(), ROWS, 3),
        (MaskSpec("chunked", 100), ROWS, 4),
        (MaskSpec("chunked", 129), None, 4),
        (MaskSpec("chunked", 130), None, 3),
        (MaskSpec("sliding_window", 129), ROWS, 4),
    ],
    ids=str,
)
def test_skipped_blocks_hold_no_visible_key(mask, rows, skipped, monkeypatch):
    """Nine blocks of scores, of which three lie above the diagonal; another, if its keys are too far back."""
    monkeypatch.setattr(splash, "QUERY_BLOCK", 128)
    monkeypatch.setattr(splash, "KEY_BLOCK", 128)
    q, k, v, weights, segments = case_of(rows, 384, 2, 1, 8, jnp.float32)
    computed = np.count_nonzero(splash.kernel_of(mask.size, q).fwd_mask_info.block_mask)
    assert computed == 9 - skipped
    expected = both(lambda q, k, v: attention_reference(q, k, v, mask, segments), q, k, v, weights, segments)
    found = both(lambda q, k, v: splash_attention(q, k, v, mask, segments), q, k, v, weights, segments)
    for x, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, exact, atol=3e-5 * max(1.0, float(jnp.abs(exact).max())), rtol=2e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"packed": False, "dtype": "float32"}, None),
        ({"dtype": "float16"}, "takes bfloat16 and float32, not float16"),
        ({"head_dim": 96}, "takes head dims 64, 128, 256, not 96"),
        ({"heads": 12}, "takes a multiple of 8 query heads, not 12"),
        ({"length": 8200}, "a multiple of 128 tokens, not 8,200"),
    ],
)
def test_reasons_why_not(changes, said):
    reason = why_not(dataclasses.replace(CASE, **changes))
    assert reason is None if said is None else said in (reason or "")


@pytest.mark.parametrize(
    ("length", "blocks"), [(8192, (1024, 512)), (1280, (640, 256)), (1152, (384, 384)), (128, (128, 128))]
)
def test_blocks_are_the_largest_that_divide_a_row(length, blocks):
    assert splash.blocks_of(length) == blocks


@pytest.mark.parametrize(("names", "forward"), [((ATTENTION,), 1), ((), 2)])
def test_attention_runs_forward_once_if_its_results_are_kept(names, forward):
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    segments = rows_of([[100, 156]], 256)
    layer = jax.checkpoint(lambda q, k, v: splash_attention(jnp.sin(q), k, v, MaskSpec(), segments), policy=policy)
    loss = lambda q, k, v: jnp.sum(layer(q, k, v).astype(jnp.float32) ** 2)
    q, k = (jnp.ones((1, 256, heads, 8), jnp.bfloat16) for heads in (4, 2))
    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, k))
    calls = {phase: len(re.findall(rf"name=splash_mha_{phase}_", program)) for phase in ("fwd", "dq", "dkv")}
    assert calls == {"fwd": forward, "dq": 1, "dkv": 1}


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"data": 2, "expert": 2}], ids=str)
def test_every_device_computes_its_own_rows_and_heads(sizes, remat, mesh_of, monkeypatch):
    """Splash attention says of no result that it differs between devices; what leaves a `shard_map` must be marked."""
    attention_by(SPLASH, monkeypatch)
    mask, rules = MaskSpec("chunked", 50), ShardingRules()
    q, k, v, weights, _ = case_of(None, 128, 4, 2, 8, jnp.float32)
    q, k, v, weights = (jnp.concatenate([x, x[::-1] * 0.5]) for x in (q, k, v, weights))
    segments = rows_of([[70, 58], [128], [1, 127], [64, 64]], 128)
    expected = both(lambda q, k, v: attention_reference(q, k, v, mask, segments), q, k, v, weights, segments)
    with mesh_of(**sizes):
        place = lambda x, *axes: jax.device_put(x, rules(*axes))
        heads = ("batch", "length", "heads", None)
        placed = [place(x, *heads) for x in (q, k, v, weights)]
        segments = jax.tree.map(lambda x: place(x, "batch", "length"), segments)

        places = Positions(segments, (q, q), None, None, None, in_cells=True)  # attention reads no angles

        def layer(q, k, v):
            return attend(q, k, v, mask, places, rules)

        if remat:
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(ATTENTION))
        found = [np.asarray(x) for x in both(layer, *placed, segments)]
    for x, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, exact, atol=3e-5 * max(1.0, float(jnp.abs(exact).max())), rtol=2e-5)

"""What attention computes, by the kernel that computes it."""

import dataclasses

import numpy as np
import pytest

from maverick_jax.accounting.attention import computed_scores, is_fused, pace, products, score_traffic, seen_share
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.ops.attention import MaskSpec
from maverick_jax.sharding import MESH_AXES, ShardingRules

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
    intermediate_size=64, intermediate_size_mlp=64, attention_chunk_size=1024, compute_dtype="bfloat16")  # fmt: skip
TPU = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1), 2, 3072, platform="tpu")
LOCAL, GLOBAL = (next(spec for spec in CONFIG.layers if bool(spec.rope) is rope) for rope in (True, False))


@pytest.mark.parametrize("reach", [1024, 1500, 3072])
@pytest.mark.parametrize("spec", [LOCAL, GLOBAL], ids=["local", "global"])
def test_splash_attention_computes_whole_blocks_with_a_key_that_is_near_enough(spec, reach):
    config = CONFIG.model_copy(update={"attention_chunk_size": reach})
    mask = MaskSpec("sliding_window", reach if spec.rope else None)
    at = np.arange(3072)
    near = mask.allows(at[:, None], at[None, :]).reshape(3, 1024, 6, 512).any(axis=(1, 3))
    assert computed_scores(config, spec, TPU) == 2 * near.sum() * 1024 * 512


@pytest.mark.parametrize(
    ("config", "layout", "fused"),
    [
        ({}, {}, True),
        ({"compute_dtype": "float32"}, {}, True),
        ({"head_dim": 96}, {}, False),
        ({}, {"sequence_length": 1000}, False),
        ({}, {"platform": "gpu"}, True),
        ({"compute_dtype": "float32"}, {"platform": "gpu"}, False),
        ({}, {"platform": "cpu"}, False),
    ],
)
def test_what_kernels_take_moves_no_scores_through_memory(config, layout, fused):
    config, layout = CONFIG.model_copy(update=config), dataclasses.replace(TPU, **layout)
    assert is_fused(config, layout) is fused
    assert (score_traffic(config, GLOBAL, layout) == 0) is fused
    splash = fused and layout.platform == "tpu"
    assert products(config, layout) == (9 if splash else 7)
    assert (pace(config, layout) != 1) is (fused and not splash)


def test_a_causal_row_sees_half_of_its_pairs_of_tiles_and_half_of_the_diagonal():
    """Of 4 tiles of 1,024 tokens on each of 2 devices, 36 of 64 pairs."""
    shared = dataclasses.replace(TPU, sizes=TPU.sizes | {"context": 2}, sequence_length=8192, batch_size=1)
    assert seen_share(CONFIG, shared, "global") == 36 / 64
    assert seen_share(CONFIG, shared, "chunked") is None and seen_share(CONFIG, TPU, "global") is None

"""What a period's backward pass holds, against counts by hand."""

import dataclasses

import pytest

from maverick_jax.accounting.layout import Layout
from maverick_jax.accounting.period import worst
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import of_model
from maverick_jax.sharding import MESH_AXES, ShardingRules

MAVERICK = ModelConfig.from_name("maverick_17b_128e", compute_dtype="bfloat16").model_copy(
    update={"remat": "attention"}
)
TPU = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "expert": 128}, 2048, 8192, platform="tpu")
TOKENS = 32768


def held(config=MAVERICK, layout=TPU, trained=None) -> dict[str, int]:
    return worst(config, layout, of_model(config) if trained is None else trained)


def test_tpu_programs_hold_the_operands_of_a_periods_dense_weight_gradients():
    """At the first layer's attention: of two dense layers and two with a shared expert."""
    streams = TOKENS * 4 * 5120
    heads = TOKENS * (40 + 40 + 2 * 8) * 128  # attended values, and gradients of queries, keys and values
    hidden = TOKENS * 4 * 2 * (16384 + 8192)
    found = held()
    assert found["operands"] == 2 * (4 * (streams + heads) + hidden)
    assert found["attention"] == TOKENS * 128 * (2 * 4 * 40 + 2 * (40 + 2 * 8)) and found["recomputed"] == 0
    experts = 2 * 3 * 5120 * 8192 * 4
    assert found["gathered"] == experts, "dense gradients take the places of their operands"


def test_frozen_dense_weights_have_no_operands():
    experts = [p for p in of_model(MAVERICK) if p.role == "experts"]
    assert held(trained=experts)["operands"] == 0


@pytest.mark.parametrize(("dtype", "all_weights"), [("float32", True), ("bfloat16", False)])
def test_tpu_programs_copy_weights_that_they_cast_and_pairs_of_matrices(dtype, all_weights):
    config = MAVERICK.model_copy(update={"param_dtype": dtype})
    stacked = [p for p in of_model(config) if p.stacked]
    pairs = 24 * 5120 * 2 * 8192 // 4  # of one expert in each of 24 layers, shared by 4 devices
    assert held(config)["copies"] == 2 * (TPU.stored(stacked) if all_weights else pairs)


GPU = dataclasses.replace(TPU, platform="gpu")
ATTENTION = 5120 * (2 * 40 + 2 * 8) * 128  # elements of a layer's four projections


def test_gpu_programs_hold_the_gradient_of_the_output_matrix_during_the_first_layer():
    """With many tokens, that layer needs most: before its own gradients, when all of its values are there."""
    found = held(layout=GPU)
    norms_and_router = 2 * 5120 + 5120 * 128
    assert found["loss"] == 2 * 5120 * 202048
    assert found["gathered"] == 2 * (ATTENTION + 2 * 3 * 5120 * 8192 + norms_and_router)
    assert found["attention"] > 0 and "operands" not in found


def few_tokens(config=MAVERICK) -> dict[str, int]:
    layout = dataclasses.replace(GPU, batch_size=512, sequence_length=1024)
    return held(config, layout, [p for p in of_model(config) if p.role != "head"])


def test_gpu_programs_hold_a_periods_gradients_until_its_last_layer_is_done():
    """With few tokens, that layer needs most: a dense one, below two layers of experts and a dense one."""
    found = few_tokens()
    dense = ATTENTION + 3 * 5120 * 16384 + 2 * 5120
    routed = ATTENTION + 2 * 3 * 5120 * 8192 + 2 * 5120 + 5120 * 128
    assert found["loss"] == 0
    assert found["gathered"] == 2 * (dense + 2 * dense + 2 * routed)


def test_gpu_programs_sum_rounds_of_experts_in_float32_until_their_layer_is_done():
    """Experts that are wider than all else; values of theirs are no longer there."""
    config = MAVERICK.model_copy(update={"interleave_moe_layer_step": 1, "num_local_experts": 2048})
    found = few_tokens(config)
    routed = 16 * 3 * 5120 * 8192  # experts of a device
    layer = ATTENTION + 3 * 5120 * 8192 + 2 * 5120 + 5120 * 2048 + routed
    assert found["gathered"] == 2 * layer + 3 * 2 * layer + 4 * routed
    assert 0 < found["recomputed"] < 1024 * 5120 * 2 * 40


def test_gpu_programs_copy_weights_that_are_gathered_along_another_dimension_than_their_first():
    experts_out = 24 * 8192 * 5120 // 4
    down, o = 24 * (16384 + 8192) * 5120 // 512, 48 * 40 * 128 * 5120 // 512
    assert held(layout=GPU)["copies"] == 4 * (experts_out + down + o)
    several = dataclasses.replace(GPU, sizes=GPU.sizes | {"expert": 32})
    pairs = 24 * 4 * 5120 * 2 * 8192 // 4
    assert held(layout=several)["copies"] == 4 * (4 * experts_out + 4 * (down + o) + pairs)

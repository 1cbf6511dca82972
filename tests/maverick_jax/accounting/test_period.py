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


def test_gpu_programs_hold_neither():
    found = held(layout=dataclasses.replace(TPU, platform="gpu"))
    assert found.keys() == {"recomputed", "attention", "gathered"} and all(found.values())

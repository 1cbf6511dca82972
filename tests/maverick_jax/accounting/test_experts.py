"""How routed experts are computed, by platform and layout."""

import pytest

from maverick_jax.accounting import experts
from maverick_jax.accounting.devices import MATRIX_SHARE
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.sharding import MESH_AXES, ShardingRules

SCOUT = ModelConfig.from_name("scout_17b_16e").model_copy(update={"compute_dtype": "bfloat16"})


def layout(platform: str, expert: int) -> Layout:
    return Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | {"expert": expert}, 16, 8192, platform=platform)


@pytest.mark.parametrize(
    ("platform", "dtype", "expert", "grouped", "gradient"),
    [
        ("gpu", "bfloat16", 1, True, 2),
        ("gpu", "bfloat16", 8, True, 4),  # rounds of the exchange are summed
        ("gpu", "bfloat16", 16, False, 4),
        ("gpu", "float32", 1, False, 4),
        ("tpu", "float32", 1, True, 4),
        ("tpu", "bfloat16", 1, True, 2),
        ("cpu", "bfloat16", 1, False, 4),  # tiles are summed
    ],
)
def test_products_and_gradients_of_experts(platform, dtype, expert, grouped, gradient):
    config, of = SCOUT.model_copy(update={"compute_dtype": dtype}), layout(platform, expert)
    assert experts.are_grouped(config, of) is grouped
    assert experts.gradient_bytes(config, of) == gradient
    paced = grouped and platform == "gpu"
    assert experts.pace(config, of) == pytest.approx(MATRIX_SHARE * 989.4 / 500 if paced else 1)


def test_one_expert_without_an_exchange_has_gradients_in_the_compute_dtype():
    config = SCOUT.model_copy(update={"num_local_experts": 1})
    assert experts.gradient_bytes(config, layout("gpu", 1)) == 2 and not experts.are_grouped(config, layout("gpu", 1))

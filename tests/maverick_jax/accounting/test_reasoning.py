"""The cost of reasoning heads and loops in closed form."""

import math

from maverick_jax.accounting.flops import NOTHING, flops_per_token
from maverick_jax.accounting.serving import slot_bytes, text_bytes
from maverick_jax.config import ModelConfig
from maverick_jax.reasoning import Loops, ReasoningHeads

MAVERICK = ModelConfig.from_name("maverick_17b_128e")


def test_heads_of_maverick_cost_what_the_design_says():
    """Four heads for declarations in 36 layers: 6.6 million parameters a layer, 512 bytes a key and value."""
    config = MAVERICK.model_copy(update={"reasoning_heads": ReasoningHeads(schema_heads=4, schema_tokens=2345)})
    D, H, layers = 5120, 128, 36
    assert config.num_parameters() - MAVERICK.num_parameters() == layers * (10 * D * H + 1) == 235_929_636
    assert text_bytes(config, 8192)["marked"] == layers * 2345 * 512 == 43_223_040
    assert slot_bytes(config, 8192) - slot_bytes(MAVERICK, 8192) == 43_223_040
    plain, found = (flops_per_token(c, 8192) for c in (MAVERICK, config))
    assert found["reasoning_heads"] == 6 * layers * 10 * D * H
    assert found["attention_scores"] - plain["attention_scores"] == 12 * layers * 4 * H * 2345


def test_looping_two_of_twelve_periods_once_more_costs_a_sixth():
    looped = MAVERICK.model_copy(update={"loops": Loops(periods=(5, 7), times=2)})
    drawn = MAVERICK.model_copy(update={"loops": Loops(periods=(5, 7), times=3, drawn=True)})
    whole = lambda config, *more: sum(flops_per_token(config, 8192, *more).values())
    head = flops_per_token(MAVERICK, 8192)["head"]
    share = (whole(looped) - head) / (whole(MAVERICK) - head)
    assert math.isclose(share, 14 / 12) and math.isclose(whole(drawn), whole(looped))
    assert math.isclose(whole(drawn, NOTHING) - whole(MAVERICK, NOTHING), 2 * (whole(looped, NOTHING)
                        - whole(MAVERICK, NOTHING)))  # fmt: skip
    assert text_bytes(looped, 8192)["rings"] * 12 == text_bytes(MAVERICK, 8192)["rings"] * 14
    assert looped.num_parameters() - MAVERICK.num_parameters() == 5120

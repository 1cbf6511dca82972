"""The closed form of a step's time, against counts by hand."""

import dataclasses

import pytest

from maverick_jax import parameters
from maverick_jax.accounting.communication import Transfer, transfers
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.accounting.estimate import estimate, memory_traffic, repeated_flops
from maverick_jax.accounting.flops import NOTHING, flops_per_token, train_flops_per_token
from maverick_jax.accounting.layout import Layout
from maverick_jax.config import ModelConfig
from maverick_jax.sharding import MESH_AXES, ShardingRules

MAVERICK = ModelConfig.from_name("maverick_17b_128e").model_copy(update={"compute_dtype": "bfloat16"})
CLUSTER = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "expert": 128}, 2048, 8192, platform="gpu")


def with_remat(remat: str) -> ModelConfig:
    return MAVERICK.model_copy(update={"remat": remat})


def test_repeated_flops_of_a_step_equal_a_count_by_hand():
    """4,694 TFLOP is what the step compiled for 512 H200 does, by blocked attention."""
    config, blocked = with_remat("attention"), dataclasses.replace(CLUSTER, platform="cpu")
    useful = train_flops_per_token(config, 8192) * CLUSTER.tokens
    assert (useful + repeated_flops(config, blocked)) / 1e12 == pytest.approx(4694, abs=0.5)


def test_a_step_that_saves_its_products_repeats_scores_and_experts_alone():
    forward = flops_per_token(MAVERICK, 8192, NOTHING)
    experts = forward["routed_experts"] * ((3 + 2 / 3) * 1.375 - 3)  # a share of 256 rows has room for 352
    for platform, computed in (("gpu", 1), ("cpu", 9 / 8)):  # a fused kernel computes the scores of the mask alone
        scores = forward["attention_scores"] * (3.5 * computed - 3)
        layout = dataclasses.replace(CLUSTER, platform=platform)
        for remat in ("none", "dots"):
            found = repeated_flops(with_remat(remat), layout) / CLUSTER.tokens
            assert found == pytest.approx(experts + scores, rel=1e-3)
    more = (repeated_flops(with_remat(remat), CLUSTER) for remat in ("none", "attention", "full"))
    assert len({*more}) == 3


def test_unused_slots_of_frozen_experts_cost_two_passes_and_not_three():
    """None of a gradient of their weights."""
    config, room = with_remat("attention"), CLUSTER.exchange(MAVERICK)
    assert room is not None
    unused = room.total * 128 / CLUSTER.tokens - 1
    forward = flops_per_token(config, 8192, NOTHING)["routed_experts"] * CLUSTER.tokens
    less = repeated_flops(config, CLUSTER) - repeated_flops(config, CLUSTER, trained=[])
    assert less == pytest.approx(forward * unused, rel=1e-6)


def test_tiles_of_several_experts_compute_no_unused_slots():
    """They hold real rows alone, where no kernel multiplies the rows of all experts."""
    forward = flops_per_token(MAVERICK, 8192, NOTHING)
    halves = dataclasses.replace(CLUSTER, sizes=CLUSTER.sizes | {"fsdp": 8, "expert": 64}, platform="cpu")
    scores = forward["attention_scores"] * (3.5 * 9 / 8 - 3)
    found = repeated_flops(with_remat("none"), halves) / CLUSTER.tokens
    assert found == pytest.approx(forward["routed_experts"] * 2 / 3 + scores, rel=1e-3)


def test_microbatches_repeat_what_one_batch_repeats():
    """Without an exchange, whose room is the larger in proportion the fewer rows there are."""
    whole = dataclasses.replace(CLUSTER, sizes=CLUSTER.sizes | {"fsdp": 512, "expert": 1})
    halves = dataclasses.replace(whole, accumulation_steps=2)
    config = with_remat("attention")
    assert repeated_flops(config, halves) == repeated_flops(config, whole)


def test_the_update_reads_gradients_twice_and_weights_and_state_once_and_writes_them():
    few = dataclasses.replace(CLUSTER, sizes=CLUSTER.sizes | {"data": 1}, batch_size=1)
    traffic = lambda trained: memory_traffic(MAVERICK, few, trained=trained, state_bytes=lambda p: 6)
    weights = [p for p in parameters.of_model(MAVERICK) if p.role == "head"]
    stored = 202048 * 5120 // 512
    assert traffic(weights) - traffic([]) == stored * (4 + 4 + 4 + 4 + 6 + 6)


def test_exchanges_are_exposed_and_other_collectives_behind_the_computation_are_not():
    device, config = DEVICES["h200"], with_remat("attention")
    of = lambda sent: estimate(config, CLUSTER, device, 1e15, sent, trained=[], state_bytes=lambda p: 8)
    nothing = of([])
    assert nothing.exposed == 0 and nothing.step == nothing.compute == nothing.products + nothing.traffic
    ring = of([Transfer("gather", ((512, 1),), int(1e9), 1)])
    assert ring.wire["gather"] > 0 == ring.exposed
    long = of([Transfer("gather", ((4, 128),), int(1e12), 1)])
    assert long.exposed == pytest.approx(long.wire["gather"] - long.compute)
    exchange = of([Transfer("all_to_all", ((128, 1),), int(1e9), 1)])
    assert exchange.exposed == exchange.wire["all_to_all"] / 4 > 0  # the others of its rounds are hidden


def test_time_of_many_small_collectives_is_that_of_each_times_their_number():
    device, config = DEVICES["h200"], with_remat("attention")
    of = lambda times: estimate(
        config, CLUSTER, device, 1e15, [Transfer("gather", ((4, 128),), 1000, times)], trained=[],
        state_bytes=lambda p: 8,
    ).wire["gather"]  # fmt: skip
    one = device.seconds_to_send(1000, 4, 1, "ring")
    assert of(1) == pytest.approx(one) and of(10) > 9 * (one - 1000 / device.network_rate)


def test_a_step_sends_collectives_of_each_kind():
    kinds = {transfer.kind for transfer in transfers(MAVERICK, CLUSTER)}
    assert kinds == {"gather", "reduce_scatter", "all_reduce", "all_to_all"}

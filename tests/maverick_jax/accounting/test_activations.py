"""Bytes of what layers save, against counts by hand."""

import dataclasses

from maverick_jax.accounting.activations import host_bytes, in_flight_bytes, kept_bytes, named_bytes, repeats
from maverick_jax.accounting.communication import transfers
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.accounting.estimate import estimate, repeated_flops
from maverick_jax.accounting.flops import NOTHING, flops_per_token
from maverick_jax.accounting.layout import Layout
from maverick_jax.accounting.memory import memory
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.parameters import of_model
from maverick_jax.saved import Remat, SavedNames
from maverick_jax.sharding import MESH_AXES, ShardingRules

CLUSTER = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1) | {"fsdp": 4, "expert": 128}, 2048, 8192, platform="gpu")
TOKENS = 32768
MIXED = Remat(
    keep=SavedNames(all_layers=("attention",), dense_layers=("mlp",)),
    offload=SavedNames(moe_layers=("mlp", "input"), global_layers=("qkv",)),
)


def maverick(remat) -> ModelConfig:
    return ModelConfig.from_name("maverick_17b_128e", compute_dtype="bfloat16").model_copy(update={"remat": remat})


def test_bytes_of_each_name_by_hand():
    config = maverick("full")
    moe, dense = (named_bytes(config, LayerSpec(moe=moe, rope=True), CLUSTER) for moe in (True, False))
    stream = TOKENS * 5120 * 2
    both = {
        "input": stream,
        "residual": stream,
        "qkv": TOKENS * (40 + 2 * 8) * 128 * 2,
        "attention": stream + TOKENS * 40 * 4,
    }
    assert dense == {**both, "mlp": TOKENS * 2 * 16384 * 2}
    rows = 4 * 88 * 128  # four rounds of 88 rows from each of 128 devices
    assert moe == {**both, "mlp": TOKENS * 2 * 8192 * 2, "router": TOKENS * 128 * 4, "received": rows * 5120 * 2}


def test_a_layer_keeps_its_input_and_the_names_of_its_kinds():
    config = maverick(MIXED)
    of = lambda moe, rope: named_bytes(config, LayerSpec(moe=moe, rope=rope), CLUSTER)
    kept = lambda moe, rope: kept_bytes(config, LayerSpec(moe=moe, rope=rope), CLUSTER)
    dense, moe = of(False, True), of(True, True)
    assert kept(False, True) == dense["input"] + dense["attention"] + dense["mlp"]
    assert kept(True, True) == kept(True, False) == moe["attention"]
    assert host_bytes(config, CLUSTER) == 24 * (moe["mlp"] + moe["input"]) + 12 * moe["qkv"]
    assert in_flight_bytes(config, CLUSTER) == 2 * (moe["mlp"] + moe["input"]) + moe["qkv"]
    assert in_flight_bytes(maverick("attention"), CLUSTER) == host_bytes(maverick("none"), CLUSTER) == 0


def test_what_is_offloaded_leaves_the_device_but_for_a_period():
    kept, moved = (maverick(Remat(**{key: SavedNames(all_layers=("mlp",))})) for key in ("keep", "offload"))
    there = host_bytes(moved, CLUSTER)
    assert there == 24 * TOKENS * 2 * (16384 + 8192) * 2
    activations = [memory(config, CLUSTER)["activations"] for config in (kept, moved)]
    assert activations[0] - activations[1] == there - in_flight_bytes(moved, CLUSTER) == there * 11 // 12


def test_each_saved_name_takes_its_products_off_what_is_repeated():
    forward = flops_per_token(maverick("full"), 8192, NOTHING)
    full = repeated_flops(maverick("full"), CLUSTER)
    for name, saved in {
        "qkv": forward["attention_projections"] * 56 / 96,
        "residual": forward["attention_projections"] * 40 / 96,
        "mlp": 2 / 3 * (forward["dense"] + forward["shared_experts"]),
        "router": forward["router"],
        "attention": forward["attention_scores"],
        "received": 0,
    }.items():
        for key in ("keep", "offload"):
            found = repeated_flops(maverick(Remat(**{key: SavedNames(all_layers=(name,))})), CLUSTER)
            assert abs(full - found - saved * TOKENS) < 1e-6 * full, name
    assert repeats(maverick(MIXED), "qkv") == 3 / 4 and repeats(maverick(MIXED), "mlp", moe=False) == 0


def test_received_rows_are_sent_again_by_the_layers_that_do_not_save_them():
    sent = lambda remat: max(t.times for t in transfers(maverick(remat), CLUSTER) if t.kind == "all_to_all")
    local = Remat(offload=SavedNames(local_layers=("received",)))
    assert (sent("attention"), sent("full"), sent(local)) == (4 * 24 * 4, 4 * 24 * 5, 4 * (24 * 4 + 12))


def test_copies_to_the_host_are_exposed_as_far_as_they_take_longer_than_the_computation():
    device, config = DEVICES["h200"], maverick(Remat(offload=SavedNames(all_layers=("mlp",))))
    of = lambda device: estimate(config, CLUSTER, device, 3e15, [], trained=[], state_bytes=lambda p: 8)
    fast, slow = of(device), of(dataclasses.replace(device, host=1e9))
    assert fast.wire["host"] == 2 * host_bytes(config, CLUSTER) / device.host_rate and fast.exposed == 0
    assert abs(slow.exposed - (slow.wire["host"] - slow.compute)) < 1e-9


def test_without_a_scan_activations_go_before_gradients_come():
    """Of one period, either the last layer's backward pass is the worst moment, with all activations and no gradient
    of a layer, or the first layer's, with its own activations and the gradients of the others."""
    config = ModelConfig.from_name("maverick_slice_h200", compute_dtype="bfloat16").model_copy(update={"remat": "dots"})
    long = Layout(ShardingRules(), dict.fromkeys(MESH_AXES, 1), 8, 8192, platform="gpu")
    short = dataclasses.replace(long, sequence_length=256)
    kept = [sum(kept_bytes(config, spec, layout) for spec in config.layers) for layout in (long, short)]
    head = 5120 * 25256 * 2
    held = memory(config, long)
    assert (held["activations"], held["gradients"]) == (kept[0], head)
    first = [p for p in of_model(config) if p.role not in ("embed", "norm")]
    few = memory(config, short)
    assert few["activations"] < kept[1]
    assert few["gradients"] > sum(p.size for p in first) * 2 // 2  # more than half of all

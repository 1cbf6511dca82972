"""The plan of a compiled step, here on simulated devices taken for H200."""

import dataclasses
import re

import pytest

from launch import compiled_plan, plan
from maverick_jax.accounting.devices import DEVICES
from maverick_jax.target import Target
from train.config_files import read_config

WORDS = ["mesh.data=1", "mesh.fsdp=2", "mesh.expert=4", "data.sequence_length=64", "data.batch_size=8"]


@pytest.fixture
def planned(monkeypatch, tmp_path):
    """`planned()`: the plan of `pretrain_tiny` compiled for this process's devices."""
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path))
    for module in (compiled_plan, plan):
        monkeypatch.setattr(module, "device_of", lambda kind: DEVICES["h200"])
    return lambda *more: plan.plan(read_config("pretrain_tiny", [*WORDS, *more]), Target.local())


def test_a_plan_says_what_the_program_takes_and_keeps_it(planned, monkeypatch):
    first = planned()
    found = first["compiled"]
    assert not found["cached"] and first["fits"] and first["devices"] == 8
    assert found["bytes"]["arguments"] >= first["bytes_per_device"]["weights"]
    assert found["bytes"]["peak"] >= found["bytes"]["arguments"]
    sent = lambda kind: sum(e["bytes"] for name, e in found["collectives"].items() if name.split()[0] == kind)
    assert sent("all-gather") > 0
    assert sent("all-to-all") == first["communication_bytes_per_step"]["all_to_all"]
    assert 0 < found["mfu"] < 1 and found["seconds"]["step"] >= found["seconds"]["compute"] > 0
    monkeypatch.setattr(compiled_plan, "measure", None)  # a kept plan compiles nothing
    again = planned()["compiled"]
    assert again["cached"] and again == found | {"cached": True}
    lines = plan.render(first)
    assert {choice.rpartition(": ")[2] for choice in found["chosen"]} == {"xla", "tiles"}, "the kernels of a CPU"
    for line in (
        r"chosen +attention .*: xla",
        r"compiled peak +\d+\.\d\d MB per device",
        r"all-gather fsdp\+expert f32",
        r"MFU +\d+\.\d%",
    ):
        assert re.search(line, lines)


@pytest.mark.slow
def test_other_flags_of_the_compiler_are_another_program(planned, monkeypatch):
    first = planned()["compiled"]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--another=1")  # read by a compiler that is not in use here
    assert not first["cached"] and not planned()["compiled"]["cached"]


@pytest.mark.slow
def test_what_would_fit_is_judged_by_the_compiled_peak(planned, monkeypatch):
    """Even where the closed form fits as it is: a change must take as much off as the program is too large."""
    found = planned("optimizer.accumulation_steps=1", "data.batch_size=64", "data.sequence_length=256")
    peak, closed = found["compiled"]["bytes"]["peak"], found["bytes_per_device"]["total"]
    small = dataclasses.replace(DEVICES["h200"], memory_gb=0.8 * peak / plan.USABLE / 1e9)
    monkeypatch.setattr(plan, "device_of", lambda kind: small)
    found = planned("optimizer.accumulation_steps=1", "data.batch_size=64", "data.sequence_length=256")
    assert not found["fits"] and found["would_fit"]["changes"]
    assert found["would_fit"]["bytes"] <= 0.8 * peak and closed > 0


@pytest.mark.parametrize(
    ("path", "turns"),
    [
        ("jit(f)/while/body/layer_1/moe/shard_map/further_rounds/while/body/experts/while", 7),
        ("jit(f)/checkpoint/moe/shard_map/while/body/transpose(jvp(experts))/while", 7),
        ("jit(f)/while/body/layer_1/moe/shard_map/further_rounds/while", 0),
        ("jit(f)/jvp()/while/body/layer_1/attention/further_calls/while", 0),
        ("jit(f)/transpose(jvp())/while/body/checkpoint/attention/further_calls/while", 0),
        ("jit(f)/while", 1),
        ("jit(f)/experts/while/body/other/while", 1),
    ],
)
def test_loops_turn_as_often_as_even_routing_asks(path, turns, monkeypatch):
    monkeypatch.setattr(compiled_plan, "tile_height", lambda rows, experts: 10)
    config = read_config("pretrain_tiny", WORDS)
    trips = compiled_plan.Trips(config.model.network, plan._layout(config, {"fsdp": 2, "expert": 4}, "cpu"))
    assert trips(Loop(path)) == turns  # pyright: ignore


@pytest.mark.parametrize(
    ("path", "share"),
    [
        ("jit(f)/while/body/layer_3/attention/global/shard_map/while/body/closed_call/seen_tiles/cond", 10 / 16),
        ("jit(f)/layer_3/attention/chunked/shard_map/while/body/closed_call/seen_tiles/cond", None),
        ("jit(f)/layer_3/attention/global/shard_map/cond", None),
    ],
)
def test_tiles_are_skipped_as_a_row_of_one_segment_skips_them(path, share):
    """Of 4 tiles of 1,024 tokens, 10 of 16 pairs."""
    config = read_config("pretrain_tiny", [*WORDS, "data.sequence_length=4096"])
    trips = compiled_plan.Trips(config.model.network, plan._layout(config, {"fsdp": 2, "context": 4}, "cpu"))
    assert trips.share(Loop(path)) == share  # pyright: ignore


class Loop:
    def __init__(self, op_name: str):
        self.op_name = op_name

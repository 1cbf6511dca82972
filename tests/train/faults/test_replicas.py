"""The comparison of replicas: a flipped bit in one device's buffer is found, and its device and host are named."""

import functools
import json
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.checkpoint.checksum import added, checksums, sums_by_device
from maverick_jax.errors import SilentCorruption
from tests.helpers.faults import with_flipped_bit
from train.faults.replicas import ReplicaCheck, difference
from train.loop import Hook, fit
from train.metrics_writer import MetricsWriter
from train.rollouts.source import BatchSource

SPECS = {"w": P(None, "fsdp"), "b": P(), "spread": P(("data", "fsdp"))}


@pytest.fixture
def arrays(request, mesh_of):
    """Arrays on 8 devices; those but `spread` have a replica per place on the axis `data`."""
    with mesh_of(**getattr(request, "param", {"data": 4, "fsdp": 2})):
        values = {
            "w": np.arange(64.0, dtype=np.float32).reshape(8, 8),
            "b": np.ones(3, jnp.bfloat16),
            "spread": np.arange(16),
        }
        yield {name: jax.device_put(x, SPECS[name]) for name, x in values.items()}


def test_equal_replicas_do_not_differ(arrays):
    assert difference(arrays, sums_by_device(arrays)) is None


def test_sums_of_devices_add_up_to_the_checksum(arrays):
    """Of the shards of one replica."""
    sums = sums_by_device(arrays)
    first = [shard.device.id for shard in arrays["w"].addressable_shards if shard.replica_id == 0]
    of_w = [f"{sums[device][0][0]:08x}{sums[device][0][1]:08x}" for device in first]
    assert len(first) == 2 and added(of_w) == checksums(arrays)["w"]


@pytest.mark.parametrize("device", range(8))
@pytest.mark.parametrize(("name", "bit"), [("w", 0), ("w", 31), ("b", 7)])
def test_one_flipped_bit_names_its_device(arrays, name, bit, device):
    arrays[name] = with_flipped_bit(arrays[name], device, bit)
    found = difference(arrays, sums_by_device(arrays))
    assert found is not None
    assert (found.arrays, found.suspects, found.outvoted) == ((name,), (device,), True)


def test_a_bit_of_an_array_without_replicas_cannot_be_compared(arrays):
    arrays["spread"] = with_flipped_bit(arrays["spread"], 3, 0)
    assert difference(arrays, sums_by_device(arrays)) is None


@pytest.mark.parametrize("arrays", [{"data": 2, "fsdp": 4}], indirect=True)
def test_of_two_replicas_either_may_be_wrong(arrays):
    arrays["w"] = with_flipped_bit(arrays["w"], 6, 4)
    found = difference(arrays, sums_by_device(arrays))
    assert found is not None and found.suspects == (2, 6) and not found.outvoted


# ---- the hook --------------------------------------------------------------------------------------------------------

STOP, FAULT = 12, 7


class Faulty:
    """A step that flips a bit on device 5 in update FAULT: the first time, or each time."""

    def __init__(self, times: int):
        self.left = times
        self._step = jax.jit(lambda state, batch: ({"w": state["w"] + batch}, {"loss": jnp.sum(batch)}))

    def __call__(self, state, batch):
        state, metrics = self._step(state, batch)
        if int(batch) == FAULT and self.left:
            state, self.left = {"w": with_flipped_bit(state["w"], 5, 3)}, self.left - 1
        return state, metrics


class Numbers(BatchSource):
    """The number of each update as its batch."""

    def __call__(self, update, state):
        return jnp.float32(update)


class Save(Hook):
    every = 10


def run(tmp_path, step, *, every: int, watched=()) -> None:
    """Raises what the hook raises. The replay begins with the state before the first update."""
    fresh = lambda: {"w": jax.device_put(np.zeros((8, 8), np.float32), P(None, "fsdp"))}
    replay = lambda stop, hooks: fit(step, fresh(), Numbers(), start=0, stop=stop, hooks=hooks)
    writer = MetricsWriter(tmp_path)
    check = ReplicaCheck(lambda state: state, writer, every=every, save=Save(), replay=replay, watched=watched)
    fit(step, fresh(), Numbers(), start=0, stop=STOP, hooks=[check])


@pytest.mark.parametrize(("times", "fault"), [(1, "transient"), (2, "persistent")])
@pytest.mark.parametrize(("every", "found_at"), [(3, 9), (4, 8), (100, 10)])
def test_a_flipped_bit_is_found_by_the_next_comparison(tmp_path, mesh_of, times, fault, every, found_at):
    """At the latest before a save, here of update 10."""
    with mesh_of(data=4, fsdp=2), pytest.raises(SilentCorruption) as error:
        run(tmp_path, Faulty(times), every=every)
    said = str(error.value)
    assert f"step {found_at}: device 5 (replica data 2, fsdp 1; process 0, host {platform.node()})" in said
    assert f"a {fault} fault" in said and error.value.exit_code == 80
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line == {
        "step": found_at,
        "replicas_differ": ["w"],
        "devices": [5],
        "hosts": [platform.node()],
        "fault": fault,
    }


def test_of_two_replicas_the_second_time_tells_which_is_wrong(tmp_path, mesh_of):
    with mesh_of(data=2, fsdp=4), pytest.raises(SilentCorruption, match=r"step 8: device 5 .replica data 1, fsdp 1"):
        run(tmp_path, Faulty(1), every=4)


def test_updates_that_are_done_again_are_signs_of_life(tmp_path, mesh_of):
    class Seen(Hook):
        def __init__(self):
            self.steps = []

        def on_metrics(self, step, metrics, seconds):
            self.steps.append(step)

    with mesh_of(data=8), pytest.raises(SilentCorruption):
        run(tmp_path, Faulty(1), every=4, watched=[seen := Seen()])
    assert seen.steps == list(range(1, 9))


def test_without_replicas_the_log_says_that_nothing_is_compared(tmp_path, mesh_of, caplog):
    with mesh_of(fsdp=8):
        run(tmp_path, functools.partial(Faulty(0)), every=2)
    assert caplog.text.count("no two devices hold the same parameters") == 1

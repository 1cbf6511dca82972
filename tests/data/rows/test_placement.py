"""Placement: each process reads the rows that its devices hold, and the global array equals the batch."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from data.rows.placement import place, rows_of_process
from maverick_jax.sharding import BATCH_AXES, make_mesh

A, B, T = 3, 8, 4
BATCH = np.arange(A * B * T, dtype=np.int32).reshape(A * B, T)


def _sharding(**sizes) -> NamedSharding:
    return NamedSharding(make_mesh(sizes, jax.devices()[:8]), PartitionSpec(None, BATCH_AXES, None))


@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}, {"expert": 4, "data": 2}]
)
def test_flattened_row_g_is_microbatch_and_column(sizes):
    sharding = _sharding(**sizes)
    rows = rows_of_process(sharding, (A, B, T))
    assert rows == list(range(A * B))
    placed = place(BATCH, rows, sharding, (A, B, T))
    assert placed.sharding == sharding and placed.dtype == np.int32
    np.testing.assert_array_equal(np.asarray(placed), BATCH.reshape(A, B, T))


class SomeOf:
    """A sharding as seen by a process that has only some of the devices."""

    def __init__(self, sharding: NamedSharding, devices):
        self.sharding, self.devices = sharding, set(devices)

    def addressable_devices_indices_map(self, shape):
        parts = self.sharding.devices_indices_map(shape)
        return {device: part for device, part in parts.items() if device in self.devices}


def test_processes_divide_the_rows():
    sharding = _sharding(data=2, fsdp=2, tensor=2)
    devices = list(sharding.mesh.devices.flat)
    first, second = (rows_of_process(SomeOf(sharding, half), (A, B, T)) for half in (devices[:4], devices[4:]))
    assert first == [a * B + b for a in range(A) for b in range(4)]
    assert sorted(first + second) == list(range(A * B))


def test_missing_rows_and_wrong_shapes_are_refused():
    sharding = _sharding(data=8)
    with pytest.raises(ValueError, match="was not given"):
        place(BATCH[1:], list(range(1, A * B)), sharding, (A, B, T))
    with pytest.raises(ValueError, match="expected"):
        place(BATCH[1:], list(range(A * B)), sharding, (A, B, T))

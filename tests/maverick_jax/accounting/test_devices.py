"""Rates of collectives by the devices that take part."""

import math

import pytest

from maverick_jax.accounting.devices import DEVICES, LINK_STEP, NETWORK_STEP, Device, spans
from maverick_jax.sharding import MESH_AXES

H200 = DEVICES["h200"]
LARGE = 1e12
"""Bytes beside which the steps of a ring take no time."""


def mesh(**sizes: int) -> dict[str, int]:
    return dict.fromkeys(MESH_AXES, 1) | sizes


def seconds(device: Device, sent: float, axes: tuple[str, ...], sizes: dict[str, int], pattern) -> float:
    group = spans(axes, sizes)
    return device.seconds_to_send(sent, math.prod(size for size, _ in group), device.near(group), pattern)


@pytest.mark.parametrize(
    ("sizes", "axes", "count", "near"),
    [
        ({"data": 2, "tensor": 8}, ("tensor",), 8, 8),
        ({"data": 2, "tensor": 8}, ("data",), 2, 1),
        ({"fsdp": 4, "expert": 128}, ("expert",), 128, 8),
        ({"fsdp": 4, "expert": 128}, ("fsdp",), 4, 1),
        ({"fsdp": 4, "expert": 128}, ("fsdp", "expert"), 512, 8),
        ({"fsdp": 8, "expert": 2, "tensor": 2}, ("fsdp",), 8, 2),
    ],
)
def test_devices_of_one_host_are_neighbors_on_the_mesh(sizes, axes, count, near):
    group = spans(axes, mesh(**sizes))
    assert (math.prod(size for size, _ in group), H200.near(group)) == (count, near)


@pytest.mark.parametrize(
    ("pattern", "sizes", "axes", "rate"),
    [
        ("ring", {"data": 2, "tensor": 8}, ("tensor",), H200.link_rate),
        # one device of each host: its own card
        ("ring", {"data": 2, "tensor": 8}, ("data",), H200.network_rate),
        # eight cards of a host together
        ("ring", {"expert": 128}, ("expert",), 8 * H200.network_rate),
        ("reduce", {"expert": 128}, ("expert",), 8 * H200.network_rate),
        # 120 of 127 parts leave the host, through one card
        ("exchange", {"expert": 128}, ("expert",), H200.network_rate * 127 / 120),
        ("exchange", {"expert": 8}, ("expert",), H200.link_rate),
        ("shift", {"expert": 128}, ("expert",), H200.network_rate),
    ],
)
def test_a_collective_runs_at_the_rate_of_its_narrowest_part(pattern, sizes, axes, rate):
    found = LARGE / seconds(H200, LARGE, axes, mesh(**sizes), pattern)
    assert found == pytest.approx(rate, rel=1e-3)


def test_small_messages_wait_for_the_steps_of_a_ring_and_sums_for_a_tree():
    sizes = mesh(expert=128)
    ring = seconds(H200, 1, ("expert",), sizes, "ring")
    assert ring == pytest.approx(112 * LINK_STEP + 15 * NETWORK_STEP, rel=1e-3)
    tree = seconds(H200, 1, ("expert",), sizes, "reduce")
    assert tree == pytest.approx(2 * (3 * LINK_STEP + 4 * NETWORK_STEP), rel=1e-3)


def test_a_tpu_slice_has_links_everywhere():
    sizes = mesh(fsdp=4, expert=128)
    found = seconds(DEVICES["v5p"], LARGE, ("expert",), sizes, "ring")
    assert LARGE / found == pytest.approx(DEVICES["v5p"].link_rate, rel=1e-3)

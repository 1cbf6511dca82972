"""Topologies: their names, their refusals, and their devices where the compilers are installed."""

import re

import pytest

from maverick_jax.accounting import topologies
from maverick_jax.accounting.devices import DEVICES, device_of
from maverick_jax.accounting.topologies import GPUS, TPUS, gpu_description, parse, topology
from maverick_jax.errors import InputError


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("h200:512", (1, "h200", (64, 8))),
        ("h100:4", (1, "h100", (1, 4))),
        ("b200:3x4", (1, "b200", (3, 4))),
        ("v5p:8x8x8", (1, "v5p", (8, 8, 8))),
        ("2*v6e:16x16", (2, "v6e", (16, 16))),
    ],
)
def test_names(name, parts):
    assert parse(name) == parts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h20:8", "--topology h20:8: not a topology; did you mean h200?"),
        ("h200", "Expected KIND:SHAPE, such as h200:512"),
        ("h200:12", "hosts have 8 GPUs; give hosts and GPUs, as h200:3x4"),
        ("h200:1x2x3", "expected a number of GPUs or HOSTSxGPUS, such as h200:64x8"),
        ("v5p:8x8", "chips of v5p are linked along 3 axes"),
        ("v6e:0x4", "not a topology"),
        ("h200:8\n", "not a topology"),
    ],
)
def test_names_of_no_topology_are_refused(name, said):
    with pytest.raises(InputError, match=re.escape(said)):
        parse(name)


@pytest.mark.parametrize("name", ["h200:8", "v6e:2x2"])
def test_a_compiler_that_is_not_installed_is_named(name, monkeypatch):
    monkeypatch.setattr(topologies.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=r"pip install 'maverick-jax\[compilers\]'"):
        topology(name)


def test_a_missing_cudnn_is_named(monkeypatch):
    monkeypatch.setattr(topologies, "_require", lambda module, name: None)
    monkeypatch.setattr(topologies, "missing", lambda: "whose library was not found")
    with pytest.raises(
        InputError, match=r"cuDNN, whose library was not found; pip install 'maverick-jax\[compilers\]'"
    ):
        topology("h200:8")


def test_every_kind_is_a_known_device():
    assert {*GPUS, *TPUS} <= DEVICES.keys()


@pytest.mark.parametrize("kind", GPUS)
def test_descriptions_of_gpus_agree_with_the_table_of_devices(kind):
    text = gpu_description(kind)
    (size,) = re.findall(r"device_memory_size: (\d+)", text)
    (name,) = re.findall(r'device_description_str: "(.*)"', text)
    (bandwidth,) = re.findall(r"memory_bandwidth: (\d+)", text)
    device = DEVICES[kind]
    assert device_of(name) == device
    assert int(size) / 1e9 == pytest.approx(device.memory_gb, rel=0.08)
    assert int(bandwidth) == pytest.approx(device.bandwidth, rel=0.01)


@pytest.mark.compilers
@pytest.mark.parametrize(("name", "count"), [("h200:2x8", 16), ("v5p:2x2x4", 16), ("2*v6e:2x2", 8)])
def test_devices_of_a_topology(name, count):
    target = topology(name)
    assert target.count == count and not target.attached
    assert device_of(target.kind) == DEVICES[parse(name)[1]]

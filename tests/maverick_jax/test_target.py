"""Programs follow from the mesh in use, not from this machine's devices."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from maverick_jax.sharding import arrange, make_mesh, single_device_mesh
from maverick_jax.target import Target, traced_core_count, traced_kind, traced_platform

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_local_target_is_this_job():
    target = Target.local()
    assert target.count == jax.device_count() and target.attached
    assert (target.platform, target.kind) == ("cpu", jax.devices()[0].device_kind)
    assert Target.one_device().devices == (jax.local_devices()[0],)


def test_the_platform_is_that_of_the_mesh_in_every_part_of_a_trace(monkeypatch):
    seen = []

    def look(*_):
        seen.append((traced_platform(), traced_kind()))
        return jnp.zeros(())

    def program(x):
        look()
        jax.shard_map(look, in_specs=(), out_specs=jax.sharding.PartitionSpec())()
        jax.lax.fori_loop(0, 2, lambda _, x: x + look(), x)
        return jax.checkpoint(lambda x: x * x + look())(x)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with jax.set_mesh(single_device_mesh()):
        look()
        jax.jit(jax.grad(program))(1.0)
    assert set(seen) == {("cpu", "cpu")} and len(seen) >= 5
    assert traced_platform() == "gpu"


def test_the_core_count_is_that_of_the_mesh_or_an_error():
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    axis = {"axis_sizes": (1,), "axis_names": ("a",), "axis_types": (jax.sharding.AxisType.Explicit,)}
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(**axis, abstract_device=gpu)):
        assert traced_core_count() == 132
    with jax.set_mesh(single_device_mesh()), pytest.raises(ValueError, match="number of cores of cpu is not known"):
        traced_core_count()


def test_nothing_else_asks_which_devices_this_process_has():
    """Only the target does, and what reads or writes arrays on the host."""
    asks = re.compile(r"jax\.(default_backend|devices|local_devices|device_count|local_device_count)\(")
    hosts = {"maverick_jax/target.py", "maverick_jax/checkpoint/checksum.py", "maverick_jax/checkpoint/contents.py",
             "maverick_jax/pretrained.py", "launch/plan.py"}  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("maverick_jax", "train", "launch", "data")
        for path in (ROOT / package).rglob("*.py")
        if asks.search(path.read_text())
    }
    assert found <= hosts


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip of a slice that is a box of chips."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0
    process_index: int = 0


def chips(*box: int, slices: int = 1) -> list[Chip]:
    places = [(x, y, z) for z in range(box[2]) for y in range(box[1]) for x in range(box[0])]
    return [Chip(s * len(places) + i, place, s) for s in range(slices) for i, place in enumerate(places)]


def test_a_tpu_axis_may_split_a_row_of_chips():
    """`jax.make_mesh` refuses this mesh: no product of the box's sides is 16 and 32."""
    found = arrange((1, 32, 16, 1, 1, 1), chips(8, 8, 8))
    assert found.shape == (1, 32, 16, 1, 1, 1) and len({chip.id for chip in found.flat}) == 512


@pytest.mark.parametrize(("shape", "axis"), [((2, 4, 4), 0), ((1, 8, 4), 1), ((4, 4, 2), 0)])
def test_the_first_axes_run_between_slices(shape, axis):
    found = arrange((*shape, 1, 1, 1), chips(4, 2, 2, slices=2))
    slices = [{chip.slice_index for chip in part.flat} for part in halves(found, axis)]
    assert slices == [{0}, {1}]


def halves(devices, axis: int):
    """The two halves of an array of devices along an axis."""
    half = devices.shape[axis] // 2
    return devices.take(range(half), axis), devices.take(range(half, 2 * half), axis)


def test_other_devices_keep_their_order():
    mesh = make_mesh({"data": 2, "tensor": 4}, jax.devices())
    assert list(mesh.devices.flat) == jax.devices()

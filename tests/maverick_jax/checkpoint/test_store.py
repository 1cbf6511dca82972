"""The checkpoint store: checkpoints are restored on any mesh, and damaged ones are never used."""

import errno
import gc
import itertools
import pathlib
import resource
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.doctor import doctor, render, require_healthy
from maverick_jax.checkpoint import contents, folder, lease, names
from maverick_jax.checkpoint import store as store_module
from maverick_jax.checkpoint.checksum import _STRIDES, _sums_on_mesh, checksum_of_blocks, checksums
from maverick_jax.checkpoint.store import CheckpointConfig, CheckpointStore, SaveFailed
from maverick_jax.errors import CheckFailed, InputError, NoRestorableCheckpoint, RunInUse
from maverick_jax.sharding import make_mesh
from tests.helpers.lease_holder import other_process

# Orbax leaves futures that are never awaited when it finds damage.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


SPECS = {"model/w": ("data", "expert"), "model/b": ("expert",), "count": (), "flags": ("data",), "words": ()}


def values(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "model/w": random.normal(size=(64, 128)).astype(np.float32),
        "model/b": random.normal(size=(8,)).astype(jnp.bfloat16),
        "count": np.int32(seed),
        "flags": random.random(8) < 0.5,
        "words": random.integers(0, 2**32, 6, dtype=np.uint32),
    }


def place(arrays, mesh, specs=SPECS):
    return {name: jax.device_put(a, NamedSharding(mesh, P(*specs[name]))) for name, a in arrays.items()}


def target(mesh, specs=SPECS):
    like = values(0)
    return {
        name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, P(*specs[name])))
        for name, a in like.items()
    }


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(np.asarray(found[name]).view(np.uint8), np.asarray(expected[name]).view(np.uint8))
        if np.ndim(expected[name])
        else int(found[name]) == int(expected[name])
        for name in expected
    )


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "expert": 4})


@pytest.fixture(scope="module")
def saved(mesh, tmp_path_factory) -> pathlib.Path:
    """A store of steps 5 and 10; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("saved")
    store = CheckpointStore(directory)
    for step in (5, 10):
        store.save(step, place(values(step), mesh), {"model": {"layers": (1, 2)}, "data": "abc"})
    store.close()
    return directory


@pytest.fixture
def copy(saved, tmp_path) -> Iterator[pathlib.Path]:
    yield shutil.copytree(saved, tmp_path / "checkpoints")
    gc.collect()  # collect those futures here, where the marks apply, and not in a later test


# ---- checksum --------------------------------------------------------------------------------------------------------


def slow_checksum(array: np.ndarray) -> str:
    """The checksum's definition, one element at a time, in Python integers."""
    word = 2**32
    first = second = 0
    for index in itertools.product(*map(range, array.shape)):
        raw = array[index].tobytes()
        position = sum(i * int(stride) for i, stride in zip(index, _STRIDES, strict=False)) % word
        h = int.from_bytes(raw, "little") ^ position
        h = (h ^ (h >> 16)) * 0x85EBCA6B % word
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % word
        h ^= h >> 16
        first, second = first + h, second + h * (2 * position + 1)
    return f"{first % word:08x}{second % word:08x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "bool", "int8"])
def test_checksum_equals_its_definition_on_every_sharding(dtype, mesh):
    x = (np.random.default_rng(1).normal(size=(8, 4, 6)) * 50).astype(jnp.dtype(dtype))
    expected = slow_checksum(x)
    automatic = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    layouts = [NamedSharding(mesh, P(*s)) for s in ((), ("data",), ("data", "expert"), (("data", "expert"),))]
    for layout in [*layouts, NamedSharding(automatic, P("data")), jax.sharding.SingleDeviceSharding(jax.devices()[3])]:
        assert checksums({"x": jax.device_put(x, layout)}) == {"x": expected}
    with jax.set_mesh(mesh):
        assert checksums({"x": jax.device_put(x, layouts[2])}) == {"x": expected}
    blocks = [((0, 0, 0), x[:3]), ((3, 0, 0), x[3:, :1]), ((3, 1, 0), x[3:, 1:])]
    assert checksum_of_blocks(blocks) == expected


def test_checksum_needs_no_communication(mesh):
    """Independent reductions over simulated devices can deadlock, and a training step may be running."""
    x = jax.device_put(np.zeros((8, 8), np.float32), NamedSharding(mesh, P("data", "expert")))
    with jax.set_mesh(mesh):
        program = _sums_on_mesh.lower(x, mesh, P("data", "expert")).compile().as_text()
    assert not [word for word in ("all-reduce", "all-gather", "collective", "all-to-all") if word in program]
    assert "f32[4,2]" in program  # the shard of each device


def test_checksum_never_changes():
    """Existing checkpoints hold these values."""
    assert checksum_of_blocks([((0, 0), np.arange(12, dtype=np.float32).reshape(3, 4))]) == "dd2b2afc4947b3e6"
    assert checksum_of_blocks([((), np.int32(5))]) == "cc0d53cdcc0d53cd"


@settings(max_examples=40)
@given(element=st.integers(0, 47), bit=st.integers(0, 31), other=st.integers(0, 47))
def test_checksum_detects_a_flipped_bit_and_a_swap(element, bit, other):
    x = np.random.default_rng(0).normal(size=(48,)).astype(np.float32)
    before = checksum_of_blocks([((0,), x)])
    flipped = x.copy()
    flipped.view(np.uint32)[element] ^= np.uint32(1 << bit)
    assert checksum_of_blocks([((0,), flipped)]) != before
    swapped = x.copy()
    swapped[[element, other]] = x[[other, element]]
    assert (checksum_of_blocks([((0,), swapped)]) == before) == (element == other)


# ---- names -----------------------------------------------------------------------------------------------------------


class Layer(nnx.Module):
    def __init__(self):
        self.q = nnx.Param(jnp.ones((2, 3)))
        self.width = 3


class Net(nnx.Module):
    def __init__(self):
        self.layer_0 = Layer()
        self.rest = nnx.List([Layer()])


class Pair(NamedTuple):
    value: int
    other: int


def test_names_do_not_depend_on_the_library():
    net = Net()
    optimizer = optax.adam(1e-3)
    tree = {"model": net, "opt_state": optimizer.init(net), "pair": Pair(1, 2)}
    found = names.flatten(tree)
    assert sorted(found) == [
        "model/layer_0/q",
        "model/rest/0/q",
        "opt_state/0/count",
        "opt_state/0/mu/layer_0/q",
        "opt_state/0/mu/rest/0/q",
        "opt_state/0/nu/layer_0/q",
        "opt_state/0/nu/rest/0/q",
        "pair",
        "pair/other",
    ]
    rebuilt = names.unflatten(tree, {name: leaf + 1 for name, leaf in found.items()})
    assert rebuilt["model"].layer_0.q[...].tolist() == (net.layer_0.q[...] + 1).tolist()
    assert rebuilt["pair"] == Pair(2, 3)


def test_duplicate_and_mismatched_names_are_refused():
    with pytest.raises(ValueError, match="both named 'a/b'"):
        names.flatten({"a": {"b": 1}, "a/b": 2})
    with pytest.raises(InputError, match=r"missing \['b'\], unexpected \['c'\]"):
        names.unflatten({"a": 1, "b": 2}, {"a": 1, "c": 2})


# ---- round trips -----------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "one device": ({}, {name: () for name in SPECS}),
    "the axes swapped": (
        {"data": 4, "expert": 2},
        {"model/w": ("expert", "data"), "model/b": (), "count": (), "flags": ("data",), "words": ("expert",)},
    ),
    "eight devices": (
        {"fsdp": 8},
        {"model/w": (None, "fsdp"), "model/b": ("fsdp",), "count": (), "flags": (), "words": ()},
    ),
}


@pytest.mark.parametrize("layout", ELSEWHERE)
def test_restores_on_another_mesh(layout, saved):
    sizes, specs = ELSEWHERE[layout]
    devices = jax.devices()[-max(1, int(np.prod(list(sizes.values())))) :]
    wanted = target(make_mesh(sizes, devices), specs)
    step, arrays, meta = CheckpointStore(saved, read_only=True).restore(wanted)
    assert step == 10
    assert same(arrays, values(10))
    assert all(arrays[name].sharding == wanted[name].sharding for name in wanted)
    assert meta["model"] == {"layers": [1, 2]} and meta["data"] == "abc" and meta["step"] == 10


def test_restores_an_older_step_and_a_subset(saved, mesh):
    store = CheckpointStore(saved, read_only=True)
    wanted = {"model/w": target(mesh)["model/w"]}
    step, arrays, _ = store.restore(wanted, 5, subset=True)
    assert step == 5 and same(arrays, {"model/w": values(5)["model/w"]})
    with pytest.raises(InputError, match=r"no checkpoint of step 7 .* existing steps: \[5, 10\]"):
        store.restore(wanted, 7)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path, mesh):
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=9))
    scramble = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    w = jax.device_put(np.arange(2**18, dtype=np.float32).reshape(512, 512), NamedSharding(mesh, P("data", "expert")))
    expected = np.asarray(w).copy()
    with jax.set_mesh(mesh):
        for step in (1, 2, 3):
            state = {"w": w + 0}
            store.save(step, state, {})
            scramble(state)
    store.close()
    like = {"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding)}
    assert all(np.array_equal(store.restore(like, step)[1]["w"], expected) for step in (1, 2, 3))


def test_metadata_of_an_earlier_version_has_todays_keys(tmp_path, mesh):
    lora = {"rank": 2, "alpha": 1.0, "targets": ["attention"]}
    store = CheckpointStore(tmp_path, CheckpointConfig())
    old = {"train": ["norms"], "experts": None, "lora": lora}
    store.save(1, place(values(1), mesh), {"data": "abc", "optimizer": old}, wait=True)
    meta, restored = store.meta(1), store.restore(target(mesh))[2]
    for found in (meta, restored):
        assert found["trainable"] == {"parameters": ["norms"], "experts": None} and found["adapters"] == lora
        assert found["data"] == "abc" and "optimizer" not in found


def test_restore_returns_none_if_nothing_was_saved(tmp_path, mesh):
    assert CheckpointStore(tmp_path / "new").restore(target(mesh)) is None
    assert CheckpointStore(tmp_path / "absent", read_only=True).restore(target(mesh)) is None
    assert not (tmp_path / "absent").exists()


def test_arrays_that_do_not_match_are_listed(saved, mesh):
    wanted = target(mesh)
    wanted["model/w"] = jax.ShapeDtypeStruct((64, 129), jnp.float32, sharding=wanted["model/w"].sharding)
    wanted["model/b"] = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=wanted["model/b"].sharding)
    wanted["new"] = wanted.pop("flags")
    with pytest.raises(InputError) as error:
        CheckpointStore(saved).restore(wanted)
    assert str(error.value).splitlines()[1:] == [
        "  flags: the checkpoint has bool[8], the run expects absent",
        "  model/b: the checkpoint has bfloat16[8], the run expects float32[8]",
        "  model/w: the checkpoint has float32[64, 128], the run expects float32[64, 129]",
        "  new: the checkpoint has absent, the run expects bool[8]",
    ]
    assert CheckpointStore(saved).steps() == [5, 10]  # a wrong config damages nothing


# ---- keeping and deleting --------------------------------------------------------------------------------------------


def test_keep_and_keep_every(tmp_path, mesh):
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=2, keep_every=4))
    for step in range(1, 8):
        store.save(step, place(values(step), mesh), {})
        assert len(store.steps()) >= min(step - 1, 2)  # never fewer complete checkpoints than `keep`
    store.close()
    assert store.steps() == [4, 6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6", "7"]


def test_steps_that_a_store_is_told_to_keep_are_kept(tmp_path, mesh):
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=1), kept=[1, 3, 9])
    for step in range(1, 6):
        store.save(step, place(values(step), mesh), {})
    store.close()
    assert store.steps() == [1, 3, 5]


def test_a_restore_looks_no_further_back_than_it_is_told(tmp_path, mesh):
    store = CheckpointStore(tmp_path)
    for step in (2, 4):
        store.save(step, place(values(step), mesh), {}, wait=True)
    flip(largest(tmp_path / "4", "arrays"))
    assert store.restore(target(mesh), since=3) is None
    assert store.set_aside() == ["4.corrupt-1"]
    assert store.restore(target(mesh), since=2)[0] == store.restore(target(mesh))[0] == 2


def test_only_remains_of_interrupted_work_are_removed(copy):
    for name in ("15.orbax-checkpoint-tmp", "3.deleting", "notes", "5.corrupt-1"):
        (copy / name / "arrays").mkdir(parents=True)
    CheckpointStore(copy, read_only=True)
    assert (copy / "15.orbax-checkpoint-tmp").exists()
    CheckpointStore(copy)
    assert sorted(p.name for p in copy.iterdir()) == ["10", "5", "5.corrupt-1", "notes"]


def test_a_second_store_of_the_process_leaves_the_save_of_the_first_alone(tmp_path, mesh, monkeypatch):
    first = CheckpointStore(tmp_path)
    first.save(1, place(values(1), mesh), {}, wait=True)
    first.save(2, place(values(2), mesh), {})
    second = CheckpointStore(tmp_path)
    first.wait()
    assert second.steps() == [1, 2] and second.verify(2) == []


def test_another_jobs_unfinished_save_is_left_alone(tmp_path):
    unfinished = tmp_path / "1.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with other_process(tmp_path), pytest.raises(RunInUse, match=r"is in use by process \d+ on "):
        CheckpointStore(tmp_path)
    assert unfinished.exists()
    CheckpointStore(tmp_path)
    assert not unfinished.exists()


def test_a_store_whose_directory_was_taken_over_saves_and_deletes_nothing(tmp_path, mesh):
    store = CheckpointStore(tmp_path, CheckpointConfig(keep=1))
    store.save(1, place(values(1), mesh), {}, wait=True)
    store.save(2, place(values(2), mesh), {})
    lease_file = tmp_path / lease.FILE
    lease_file.write_text(lease_file.read_text().replace(lease.holder_of(tmp_path).token, "another"))
    with pytest.raises(RunInUse, match="another job has taken over"):
        store.wait()
    assert store.steps() == [1, 2]
    with pytest.raises(RunInUse, match="another job has taken over"):
        store.save(3, place(values(3), mesh), {})
    store.close()
    assert lease.holder_of(tmp_path).token == "another"


def test_a_closed_store_gives_its_directory_back_and_opens_it_again_to_save(tmp_path, mesh):
    store = CheckpointStore(tmp_path)
    store.close()
    assert lease.holder_of(tmp_path) is None
    store.save(1, place(values(1), mesh), {}, wait=True)
    assert lease.holder_of(tmp_path) is not None


def test_saving_a_step_again(copy, mesh):
    store = CheckpointStore(copy)
    store.save(10, place(values(10), mesh), {"model": 1}, wait=True)
    with pytest.raises(InputError, match="already holds a checkpoint with other contents"):
        store.save(10, place(values(11), mesh), {})
    assert store.verify(10) == []


# ---- damage ----------------------------------------------------------------------------------------------------------


def largest(step: pathlib.Path, under: str) -> pathlib.Path:
    return max((p for p in (step / under).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGE = {
    "a bit of the data": lambda step: flip(largest(step, "arrays/ocdbt.process_0/d")),
    "data cut off": lambda step: truncate(largest(step, "arrays/ocdbt.process_0/d")),
    "data zeroed": lambda step: (p := largest(step, "arrays/ocdbt.process_0/d")).write_bytes(bytes(p.stat().st_size)),
    "data gone": lambda step: largest(step, "arrays/ocdbt.process_0/d").unlink(),
    "index gone": lambda step: (step / "arrays/manifest.ocdbt").unlink(),
    "a bit of the index": lambda step: flip(largest(step, "arrays/d")),
    "a bit of the metadata": lambda step: flip(step / "meta/data.json"),
    "a digit of the metadata": lambda step: (p := step / "meta/data.json").write_text(
        p.read_text().replace('"step": 10', '"step": 11')
    ),
    "metadata gone": lambda step: shutil.rmtree(step / "meta"),
    "arrays gone": lambda step: shutil.rmtree(step / "arrays"),
    "Orbax's record gone": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "Orbax's index cut off": lambda step: truncate(step / "arrays/_METADATA"),
    "everything gone": empty,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_restored(damage, copy, mesh, caplog):
    DAMAGE[damage](copy / "10")
    store = CheckpointStore(copy)
    assert store.verify(10) != [] and store.verify(5) == []
    step, arrays, _ = store.restore(target(mesh))
    assert step == 5 and same(arrays, values(5))
    assert store.steps() == [5] and store.set_aside() == ["10.corrupt-1"]
    assert "10 fails verification; setting it aside as 10.corrupt-1" in caplog.text
    store.save(10, place(values(10), mesh), {}, wait=True)
    assert store.restore(target(mesh))[0] == 10


def test_a_renamed_checkpoint_counts_as_damaged(copy, mesh):
    (copy / "10").rename(copy / "11")
    assert CheckpointStore(copy).restore(target(mesh))[0] == 5


def test_no_intact_checkpoint_is_an_error_on_every_start(copy, mesh):
    for step in ("5", "10"):
        empty(copy / step)
    for _ in range(2):
        with pytest.raises(NoRestorableCheckpoint, match=r"no checkpoint in .* passes verification"):
            CheckpointStore(copy).restore(target(mesh))
    assert CheckpointStore(copy).set_aside() == ["10.corrupt-1", "5.corrupt-1"]


def test_a_read_only_store_changes_nothing(copy, mesh):
    empty(copy / "10")
    assert CheckpointStore(copy, read_only=True).restore(target(mesh))[0] == 5
    assert (copy / "10").exists()


def test_an_input_output_error_does_not_set_a_checkpoint_aside(copy, mesh, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(contents.ocp, "load_checkpointables", fail)
    with pytest.raises(OSError, match="input/output"):
        CheckpointStore(copy).restore(target(mesh))
    monkeypatch.undo()
    assert CheckpointStore(copy).restore(target(mesh))[0] == 10


def test_doctor_reports_what_can_be_restored(copy):
    run_dir = copy.parent
    healthy = doctor(run_dir)
    assert healthy["restorable_step"] == 10 and [c["restorable"] for c in healthy["checkpoints"]] == [True, True]
    require_healthy(healthy)
    DAMAGE["a bit of the data"](copy / "10")
    report = doctor(run_dir)
    assert report["restorable_step"] == 5
    assert "model/w: differs from what was saved" in render(report)
    with pytest.raises(CheckFailed, match=r"\[10\]"):
        require_healthy(report)
    empty(copy / "5")
    with pytest.raises(NoRestorableCheckpoint):
        require_healthy(doctor(run_dir))
    with pytest.raises(InputError, match="holds none"):
        doctor(run_dir / "nowhere")


# ---- saves that fail -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_before_saving(copy, mesh, monkeypatch):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(SaveFailed, match=r"15 needs 32,\d\d\d bytes; .* 1 free.*nothing was deleted.* steps \[5, 10\]"):
        CheckpointStore(copy).save(15, place(values(15), mesh), {})
    assert CheckpointStore(copy).steps() == [5, 10]


@pytest.mark.parametrize("next_call", ["save", "wait", "close", "restore"])
def test_a_failed_background_save_raises_in_the_next_call(next_call, copy, mesh, monkeypatch):
    store = CheckpointStore(copy)

    class Response:
        def result(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.ocp, "save_checkpointables_async", lambda *_: Response())
    store.save(15, place(values(15), mesh), {})
    calls = {
        "save": lambda: store.save(20, place(values(20), mesh), {}),
        "wait": store.wait,
        "close": store.close,
        "restore": lambda: store.restore(target(mesh)),
    }
    with pytest.raises(SaveFailed, match=r"15 could not be written: .*No space left"):
        calls[next_call]()
    assert store.steps() == [5, 10]


def test_a_disk_that_fills_up_during_a_save(copy, mesh):
    """Simulated by a limit of 32 kB on the size of files."""
    store = CheckpointStore(copy)
    big = {"w": jax.device_put(np.random.default_rng(0).normal(size=2**16).astype(np.float32))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
    try:
        with pytest.raises(SaveFailed, match="15 could not be written"):
            store.save(15, big, {}, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.steps() == [5, 10] and store.verify(10) == []
    again = CheckpointStore(copy)
    again.save(15, big, {}, wait=True)
    assert again.verify(15) == []


def test_unsupported_arrays_are_refused_before_anything_is_written(tmp_path, mesh):
    store = CheckpointStore(tmp_path)
    with pytest.raises(InputError, match="'x' of shape \\(0, 3\\) has no elements"):
        store.save(1, {"x": jnp.zeros((0, 3))}, {})
    with pytest.raises(InputError, match="'k' is key<fry>"):
        store.save(1, {"k": jax.random.key(0)}, {})
    with pytest.raises(ValueError, match="keys reserved by the store"):
        store.save(1, {"x": jnp.zeros(3)}, {"arrays": 1})
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        CheckpointStore(tmp_path / "file" / "checkpoints")

"""Streaming import: the result equals a saved checkpoint, and an interrupted import resumes."""

import itertools
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from launch.doctor import doctor, require_healthy
from maverick_jax.checkpoint import array_writer, names
from maverick_jax.checkpoint import import_stream as importing
from maverick_jax.checkpoint import placement as placing
from maverick_jax.checkpoint.array_writer import ArrayLayout
from maverick_jax.checkpoint.checksum import RunningChecksum, added, checksum_of_blocks
from maverick_jax.checkpoint.names import MODEL
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from maverick_jax.pretrained import export, import_checkpoint, load_pretrained, save_pretrained
from maverick_jax.sharding import make_mesh
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.parity.oracle import case, our_model, random_parameters, shapes, variant

MESH = {"fsdp": 2, "expert": 2, "tensor": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A multimodal folder in float32, in several files."""
    path = tmp_path_factory.mktemp("import") / "folder"
    save_pretrained(case("maverick_with_images").ours, path, dtype="float32", max_shard_gb=1e-4)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every matrix has many, and every block several chunks."""
    monkeypatch.setattr(array_writer, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(array_writer, "CHUNK_BYTES", 1024)
    monkeypatch.setattr(placing, "BLOCK_BYTES", 8192)


def stored(run: pathlib.Path) -> CheckpointStore:
    return CheckpointStore(run / "checkpoints", read_only=True)


def same_parameters(model, parameters) -> None:
    for name, leaf in names.flatten(model).items():
        np.testing.assert_array_equal(np.asarray(leaf), parameters[name], err_msg=name, strict=True)


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_an_imported_checkpoint_equals_a_saved_one(folder, tmp_path):
    c = case("maverick_with_images")
    import_checkpoint(folder, tmp_path / "run")
    saved = CheckpointStore(tmp_path / "saved")
    arrays = {MODEL + name: leaf for name, leaf in names.flatten(c.ours).items()}
    saved.save(0, arrays, {"model": c.config.model_dump(mode="json")}, wait=True)
    assert stored(tmp_path / "run").verify(0) == []
    assert stored(tmp_path / "run").meta(0)["arrays"] == saved.meta(0)["arrays"]  # shapes, dtypes and checksums
    require_healthy(doctor(tmp_path / "run"))
    mesh = make_mesh(MESH, jax.devices())
    spread = {name: NamedSharding(mesh, leaf.sharding.spec) for name, leaf in arrays.items()}
    for placed in ({name: leaf.sharding for name, leaf in arrays.items()}, spread):
        target = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed[n]) for n, a in arrays.items()}
        step, found, _ = stored(tmp_path / "run").restore(target)
        assert step == 0
        for name, array in found.items():
            np.testing.assert_array_equal(np.asarray(array), np.asarray(arrays[name]), err_msg=name, strict=True)
            assert array.sharding.is_equivalent_to(placed[name], array.ndim)


@pytest.mark.usefixtures("small_blocks")
def test_loading_on_a_mesh_equals_loading_on_one_device(folder):
    whole, spread = load_pretrained(folder), load_pretrained(folder, make_mesh(MESH, jax.devices()))
    parameters = case("maverick_with_images").parameters
    same_parameters(whole, parameters)
    same_parameters(spread, parameters)
    gate = spread.periods.layer_0.mlp.gate[...]
    assert gate.addressable_shards[0].data.size * 8 == gate.size


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("spec", [(None, None, None), ("tensor", None, None), (None, "fsdp", ("expert", "tensor"))])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_every_element_is_read_once_on_any_sharding(spec, order):
    class Counting:
        shape = (4, 8, 16)
        values = np.arange(4 * 8 * 16, dtype=np.float32).reshape(shape)
        seen = np.zeros(shape, int)

        def __call__(self, index, dtype):
            self.seen[index] += 1
            return self.values[index].astype(dtype)

    reader = Counting()
    reader.seen = np.zeros(reader.shape, int)
    reader.order = order
    sharding = NamedSharding(make_mesh(MESH, jax.devices()), PartitionSpec(*spec))
    placed = placing.place(jax.ShapeDtypeStruct(reader.shape, np.float32, sharding=sharding), reader)
    np.testing.assert_array_equal(np.asarray(placed), reader.values)
    assert placed.sharding == sharding and (reader.seen == 1).all()


@pytest.mark.parametrize(
    ("files", "asked", "stored_as"),
    [
        ("bfloat16", "keep", "bfloat16"),
        ("float32", "keep", "float32"),
        ("mixed", "keep", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_dtypes(files, asked, stored_as, tmp_path):
    c = case("maverick")
    save_pretrained(c.ours, tmp_path / "folder", dtype="float32" if files == "mixed" else files)
    exact = c.parameters if files != "bfloat16" else {n: a.astype(ml_dtypes.bfloat16) for n, a in c.parameters.items()}
    if files == "mixed":
        tensors = safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors")
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)
        safetensors.numpy.save_file(tensors, tmp_path / "folder" / "model.safetensors")
        exact = exact | {"norm": c.parameters["norm"].astype(ml_dtypes.bfloat16)}
    import_checkpoint(tmp_path / "folder", tmp_path / "run", asked)
    meta = stored(tmp_path / "run").meta(0)
    assert meta["model"]["param_dtype"] == meta["model"]["compute_dtype"] == stored_as
    assert {entry["dtype"] for entry in meta["arrays"].values()} == {stored_as}
    expected = {name: a.astype(stored_as) for name, a in exact.items()}  # NumPy rounds to nearest even
    same_parameters(load_pretrained(tmp_path / "run", dtype=stored_as), expected)
    same_parameters(load_pretrained(tmp_path / "folder", dtype=stored_as), expected)


def test_a_checkpoint_of_ours_can_be_imported(tmp_path):
    """As bfloat16, including the float32 router bias that Llama 4 does not have. A damaged checkpoint is refused."""
    config = variant(num_hidden_layers=3, balance={"kind": "loss_free_bias"})
    model = our_model(config, random_parameters(shapes(config)))
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    arrays = {MODEL + name: leaf for name, leaf in names.flatten(model).items()}
    store.save(7, arrays | {"count": jax.numpy.ones(())}, {"model": config.model_dump(mode="json")}, wait=True)
    import_checkpoint(tmp_path / "run", tmp_path / "copy", "bfloat16")
    meta = stored(tmp_path / "copy").meta(0)
    assert meta["arrays"].keys() == arrays.keys()
    dtypes = {name: "float32" if name.endswith("router_bias") else "bfloat16" for name in arrays}
    assert {name: entry["dtype"] for name, entry in meta["arrays"].items()} == dtypes
    expected = {name.removeprefix(MODEL): np.asarray(a).astype(dtypes[name]) for name, a in arrays.items()}
    found = names.flatten(load_pretrained(tmp_path / "copy", dtype="bfloat16"))
    for name in (n for n in expected if not n.endswith("router_bias")):
        np.testing.assert_array_equal(np.asarray(found[name]), expected[name], err_msg=name)
    _flip_a_bit(tmp_path / "run" / "checkpoints" / "7" / "arrays", arrays["model/head"])
    with pytest.raises(InputError, match="differs from what was saved"):
        import_checkpoint(tmp_path / "run" / "checkpoints" / "7", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def _flip_a_bit(arrays: pathlib.Path, array: jax.Array) -> None:
    needle = np.asarray(array).tobytes()
    for path in (p for p in arrays.rglob("*") if p.is_file()):
        content = bytearray(path.read_bytes())
        if (at := content.find(needle)) >= 0:
            content[at] ^= 1
            path.write_bytes(content)


def test_import_and_export_keep_the_other_files(tmp_path):
    config = variant(vocab_size=271, num_hidden_layers=3)
    tokenizer = ByteTokenizer()
    model = our_model(config, random_parameters(shapes(config)))
    save_pretrained(model, tmp_path / "folder", tokenizer=tokenizer)
    import_checkpoint(tmp_path / "folder", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes(), name


# ---- quantized weights -----------------------------------------------------------------------------------------------


def unfuse(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each routed expert as separate linear layers, `[out, in]`."""
    made = {}
    for name, value in tensors.items():
        prefix, _, part = name.rpartition(".")
        if part == "gate_up_proj":
            gate, up = np.split(value, 2, axis=-1)
            for e in range(len(value)):
                made[f"{prefix}.{e}.gate_proj.weight"] = gate[e].T.copy()
                made[f"{prefix}.{e}.up_proj.weight"] = up[e].T.copy()
        elif part == "down_proj":
            made |= {f"{prefix}.{e}.down_proj.weight": value[e].T.copy() for e in range(len(value))}
        else:
            made[name] = value
    return made


def fuse(tensors: dict[str, np.ndarray], experts: int) -> dict[str, np.ndarray]:
    made = {name: value for name, value in tensors.items() if ".experts." not in name}
    for prefix in {name[: name.index(".experts.") + 8] for name in tensors if ".experts." in name}:
        each = lambda part, prefix=prefix: [tensors[f"{prefix}.{e}.{part}.weight"].T for e in range(experts)]
        made[f"{prefix}.gate_up_proj"] = np.concatenate([np.stack(each("gate_proj")), np.stack(each("up_proj"))], -1)
        made[f"{prefix}.down_proj"] = np.stack(each("down_proj"))
    return made


def quantize(tensors, per_tensor: bool, scale_dtype, ignored) -> tuple[dict, dict[str, np.ndarray]]:
    """The tensors as compressed-tensors stores them, and their dequantized values, computed one weight at a time."""
    files, meaning = {}, {}
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if value.ndim != 2 or not name.endswith("proj.weight") or any(word in module for word in ignored):
            files[name] = meaning[name] = value.astype(ml_dtypes.bfloat16)
            continue
        scale = (np.abs(value).max(None if per_tensor else 1, keepdims=True) / 448).astype(scale_dtype)
        eight = (value / scale.astype(np.float32)).astype(ml_dtypes.float8_e4m3fn)
        files[name] = eight
        files[f"{name}_scale"] = scale.reshape(1) if per_tensor else scale
        scales = [float(s) for s in np.broadcast_to(scale, (len(value), 1))[:, 0]]
        meaning[name] = np.array([[float(q) * s for q in row] for row, s in zip(eight, scales, strict=True)], "f4")
    return files, meaning


QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "kv_cache_scheme": None,
    "global_compression_ratio": 1.2,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False,
                        "group_size": None, "block_structure": None, "observer": "minmax", "observer_kwargs": {}},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
            "output_activations": None,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("per_tensor", "scale_dtype", "ignored"),
    [
        (False, ml_dtypes.bfloat16, []),
        (False, np.float32, ["self_attn", "router", "shared_expert", "re:.*lm_head"]),
        (True, np.float32, ["self_attn"]),
    ],
    ids=["a scale per channel", "some modules ignored", "a scale per tensor"],
)
def test_quantized_weights_are_dequantized(per_tensor, scale_dtype, ignored, tmp_path, monkeypatch):
    monkeypatch.setattr(array_writer, "BLOCK_BYTES", 1024)
    c = case("maverick")
    save_pretrained(c.ours, tmp_path / "folder", dtype="float32")
    path = tmp_path / "folder" / "model.safetensors"
    plain = unfuse(safetensors.numpy.load_file(path))
    files, meaning = quantize(plain, per_tensor, scale_dtype, [word for word in ignored if ":" not in word])
    assert sum(value.dtype.itemsize == 1 for value in files.values()) > 40
    safetensors.numpy.save_file(files, path)
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    strategy = {"strategy": "tensor" if per_tensor else "channel"}
    quantization = json.loads(json.dumps(QUANTIZATION)) | {"ignore": ignored}
    quantization["config_groups"]["group_0"]["weights"] |= strategy
    config |= {"quantization_config": quantization, "dtype": "bfloat16", "for_llm_compressor": True}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))

    import_checkpoint(tmp_path / "folder", tmp_path / "run")
    assert stored(tmp_path / "run").meta(0)["model"]["param_dtype"] == "bfloat16"
    assert stored(tmp_path / "run").verify(0) == []
    fused = fuse(meaning, c.config.num_local_experts)
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in fused.items()}
    for source, dtype, expected in (
        ("folder", "float32", fused),
        ("folder", "bfloat16", rounded),
        ("run", "bfloat16", rounded),
    ):
        save_pretrained(load_pretrained(tmp_path / source, dtype=dtype), tmp_path / "again", dtype=dtype)
        found = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name].astype(found[name].dtype), err_msg=name)
        shutil.rmtree(tmp_path / "again")


def test_experts_in_separate_tensors_are_read(tmp_path):
    c = case("scout")
    save_pretrained(c.ours, tmp_path / "folder", dtype="float32")
    path = tmp_path / "folder" / "model.safetensors"
    tensors = unfuse(safetensors.numpy.load_file(path))
    safetensors.numpy.save_file(tensors, path)
    same_parameters(load_pretrained(tmp_path / "folder", make_mesh(MESH, jax.devices())), c.parameters)
    del tensors["model.layers.3.feed_forward.experts.2.up_proj.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(InputError, match=r"1 problem\(s\)\n  missing: model.layers.3.feed_forward.experts.2.up_proj"):
        load_pretrained(tmp_path / "folder")


# ---- stopped and continued -------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(n)`: the next import stops after the n-th block is recorded; with None it does not stop."""

    def stop(blocks: int | None):
        count, record = itertools.count(1), importing._Partial._record

        def recording(self, *block):
            record(self, *block)
            if next(count) == blocks:
                raise Stopped

        monkeypatch.setattr(importing._Partial, "record", recording)

    monkeypatch.setattr(importing._Partial, "_record", importing._Partial.record, raising=False)
    return stop


@pytest.fixture
def reads(monkeypatch) -> list:
    """(array name, block number) of each block that is imported."""
    moved, move = [], importing._move
    monkeypatch.setattr(importing, "_move", lambda *a: moved.append((a[2], a[3])) or move(*a))
    return moved


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_import_resumes(folder, tmp_path, stop_after, reads):
    partial = tmp_path / ".run.importing"
    for stop in (1, 25, 40):
        stop_after(stop)
        with pytest.raises(Stopped):
            import_checkpoint(folder, tmp_path / "run")
        assert [p.name for p in tmp_path.iterdir()] == [partial.name]
    with (partial / "journal.jsonl").open("a") as journal:
        journal.write('["model/embed", 1, "dead')  # an incomplete last line
    under_way = importing._THREADS + importing._WRITING
    stop_after(None)
    import_checkpoint(folder, tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert len(set(reads)) > 100 and len(reads) <= len(set(reads)) + 3 * under_way
    assert stored(tmp_path / "run").verify(0) == []
    same_parameters(load_pretrained(tmp_path / "run"), case("maverick_with_images").parameters)
    with pytest.raises(InputError, match="already exists"):
        import_checkpoint(folder, tmp_path / "run")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("change", ["dtype", "source"])
def test_another_import_to_the_same_folder_starts_over(folder, tmp_path, stop_after, reads, caplog, change):
    source = pathlib.Path(shutil.copytree(folder, tmp_path / "folder"))
    stop_after(30)
    with pytest.raises(Stopped):
        import_checkpoint(source, tmp_path / "run")
    if change == "source":
        for path in source.glob("*.safetensors"):
            os.utime(path, ns=(1, 1))
    reads.clear()
    stop_after(None)
    with caplog.at_level(logging.WARNING):
        import_checkpoint(source, tmp_path / "run", "bfloat16" if change == "dtype" else "keep")
    assert "starting over" in caplog.text and len(reads) == len(set(reads)) > 100
    assert stored(tmp_path / "run").verify(0) == []


@pytest.mark.usefixtures("small_blocks")
def test_only_one_process_imports_to_a_folder(folder, tmp_path, monkeypatch):
    record = importing._Partial.record

    def second(self, *block):
        monkeypatch.setattr(importing._Partial, "record", record)
        with pytest.raises(InputError, match="another process is importing to it"):
            import_checkpoint(folder, tmp_path / "run")
        record(self, *block)

    monkeypatch.setattr(importing._Partial, "record", second)
    import_checkpoint(folder, tmp_path / "run")
    assert stored(tmp_path / "run").verify(0) == []


@pytest.mark.usefixtures("small_blocks")
def test_a_checkpoint_read_in_two_attempts_is_verified_whole(folder, tmp_path, stop_after):
    import_checkpoint(folder, tmp_path / "first")
    stop_after(100)
    with pytest.raises(Stopped):
        import_checkpoint(tmp_path / "first", tmp_path / "run")
    stop_after(None)
    import_checkpoint(tmp_path / "first", tmp_path / "run")
    assert stored(tmp_path / "run").meta(0) == stored(tmp_path / "first").meta(0)
    assert stored(tmp_path / "run").verify(0) == []


KILLED = """
    import sys, time
    import jax
    jax.config.update("jax_num_cpu_devices", 8)
    from maverick_jax.checkpoint import array_writer
    from maverick_jax.checkpoint import import_stream as importing
    from maverick_jax.pretrained import import_checkpoint
    array_writer.BLOCK_BYTES, array_writer.CHUNK_BYTES, record = 4096, 1024, importing._Partial.record
    def slowly(*a):
        record(*a)
        time.sleep(0.02)
    importing._Partial.record = slowly
    import_checkpoint(*sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_killed_at_any_time(folder, tmp_path, reads):
    journal = tmp_path / ".run.importing" / "journal.jsonl"
    for lines in (2, 40, 90):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(tmp_path / "run")]
        with subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}) as process:
            while not journal.exists() or journal.read_text().count("\n") < lines:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    import_checkpoint(folder, tmp_path / "run")
    assert 0 < len(reads) < 150
    assert stored(tmp_path / "run").verify(0) == []
    same_parameters(load_pretrained(tmp_path / "run"), case("maverick_with_images").parameters)


# ---- refused -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_before_importing(folder, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10_000, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"the import needs 0.\d+ GB more; the disk has 0.000 GB free"):
        import_checkpoint(folder, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_blocks")
def test_a_source_that_changes_during_the_import_is_an_error(folder, tmp_path, stop_after, monkeypatch):
    source = pathlib.Path(shutil.copytree(folder, tmp_path / "folder"))
    record, count = importing._Partial.record, itertools.count()

    def recording(self, *block):
        record(self, *block)
        if next(count) == 20:
            for path in source.glob("*.safetensors"):
                os.truncate(path, 100)

    monkeypatch.setattr(importing._Partial, "record", recording)
    with pytest.raises(InputError, match="changed while it was read"):
        import_checkpoint(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dtype_is_one_of_three(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"dtype: 'bfloat'; expected keep or float32 or bfloat16; did you mean bfloat16"
    ):
        import_checkpoint(folder, tmp_path / "run", "bfloat")


# ---- layout of arrays ------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.sampled_from([2, 4]), st.data())
def test_blocks_cover_an_array_and_chunks_cover_blocks(shape, item, data):
    order = data.draw(st.permutations(range(len(shape))))
    split = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array_writer, "BLOCK_BYTES", 2**16)
        patch.setattr(array_writer, "CHUNK_BYTES", 2**14)
        layout = ArrayLayout.of(shape, item, order, split)
    assert all(b % c == 0 for b, c in zip(layout.block, layout.chunk, strict=True))
    assert np.prod(layout.block) * item <= 2**16
    if np.prod(shape) > 10**6:
        return
    seen = np.zeros(shape, int)
    for block in layout.blocks():
        assert all(s.start % b == 0 for s, b in zip(block, layout.block, strict=True))
        seen[block] += 1
    assert (seen == 1).all()


def test_large_weights_are_cut_along_sharded_axes():
    experts_in = ArrayLayout.of((24, 128, 5120, 2, 8192), 2, (0, 1, 2, 3, 4), (1, 2, 4))
    assert experts_in.block == (1, 1, 320, 2, 8192) and experts_in.chunk == (1, 1, 160, 2, 8192)
    queries = ArrayLayout.of((12, 5120, 40, 128), 2, (0, 2, 3, 1), (1, 2))
    assert queries.block == (1, 5120, 10, 128) and queries.chunk == (1, 2560, 10, 128)


def test_large_blocks_have_the_checksum_of_small_ones():
    """The compiled program and the NumPy code give the same checksum."""
    values = np.random.default_rng(0).normal(size=(3, 700, 2, 330)).astype(np.float32)
    start = (2**32 - 1, 5, 0, 7)
    whole = RunningChecksum()
    whole.add(start, values)
    parts = []
    for i, j in itertools.product(range(3), range(0, 700, 70)):
        part = RunningChecksum()
        part.add((start[0] + i, start[1] + j, *start[2:]), values[i : i + 1, j : j + 70])
        parts.append(part.hexadecimal())
    assert values[:1, :70].nbytes < 2**20 < values.nbytes
    assert added(parts) == whole.hexadecimal() == checksum_of_blocks([(start, values)])

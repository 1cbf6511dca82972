"""Parameters read in parts, from devices and checkpoints, and tensors assembled from the parts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import contents, names
from maverick_jax.checkpoint import readers as array_readers
from maverick_jax.checkpoint.readers import LiveArray, require_undamaged
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.huggingface import export as exporting
from maverick_jax.huggingface import safetensors_writer, tensor_blocks
from maverick_jax.huggingface.names import table
from maverick_jax.huggingface.tensor_blocks import View
from tests.helpers.folders import mesh_of_8, store_run, tensors_of
from tests.parity.oracle import case, exported, our_model


class Recorded:
    """A reader of an array in memory that records the size of the largest part read."""

    def __init__(self, array: np.ndarray, chunks: tuple[int, ...]):
        self.array, self.shape, self.chunks, self.most = array, array.shape, chunks, 0

    def __call__(self, index, dtype):
        assert len(index) == self.array.ndim
        part = self.array[index].astype(dtype)
        self.most = max(self.most, part.nbytes)
        return part


@pytest.mark.parametrize("most_bytes", [1, 300, 2000, 10**9])
def test_blocks_make_up_the_tensor(most_bytes):
    """For every tensor, compared with the whole tensor computed at once."""
    parameters = case("maverick_with_images").parameters
    for entry in table({name: p.shape for name, p in parameters.items()}):
        parameter = parameters[entry.ours]
        for chunks in (parameter.shape, tuple(1 + size // 3 for size in parameter.shape)):
            reader, dtype = Recorded(parameter, chunks), np.dtype(np.float32)
            blocks = [block() for block in View.of(entry).blocks(reader, dtype, most_bytes)]
            assert all(block.flags.c_contiguous for block in blocks)
            whole = entry.export(parameter, dtype)
            np.testing.assert_array_equal(np.concatenate([b.ravel() for b in blocks]), whole.ravel(), entry.theirs)
            row = math.prod(parameter.shape[1:]) * 4  # a tensor's row is at least as small
            assert reader.most <= max(2 * most_bytes, row)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_live_array_is_read_in_parts_from_any_mesh(dtype):
    c = case("maverick")
    for name, array in names.flatten(our_model(c.config, c.parameters, mesh_of_8())).items():
        reader, expected = LiveArray(name, array), c.parameters[name]
        for low, high in ((0, 1), (0.2, 0.7), (0.5, 1)):
            index = tuple(slice(int(low * n), max(int(high * n), 1 + int(low * n))) for n in expected.shape)
            found = reader(index, jnp.dtype(dtype))
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected[index].astype(dtype))


def test_a_part_is_sliced_on_the_device():
    array = jnp.arange(4 * 6 * 5).reshape(4, 6, 5)
    part = array_readers._slice(array, (np.int32(1), np.int32(0), np.int32(3)), (2, 6, 2))
    np.testing.assert_array_equal(part, np.asarray(array)[1:3, :, 3:])


def test_checkpoint_chunks_hold_single_layers_and_experts(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_CHUNK_BYTES", 4096)
    monkeypatch.setattr(contents, "_LEAST_ROW_BYTES", 1024)
    c = case("maverick")
    run = store_run(tmp_path / "run", c.config, c.parameters)
    readers = CheckpointStore(run / "checkpoints", read_only=True).readers("model/")
    assert readers.keys() == c.parameters.keys()
    for name, reader in readers.items():
        assert math.prod(reader.chunks) * 4 <= 4096, name
        expected = c.parameters[name]
        np.testing.assert_array_equal(reader(tuple(slice(0, n) for n in expected.shape), np.dtype("float32")), expected)
    assert readers["periods/layer_1/moe/experts_in"].chunks[:2] == (1, 1)
    require_undamaged(readers)
    readers["norm"]((slice(0, 3),), np.dtype("float32"))
    with pytest.raises(ValueError, match="35 elements were read"):
        require_undamaged(readers)


def test_an_export_reads_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_blocks, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(safetensors_writer, "_AUDIT_BYTES", 4096)
    c, readers = case("maverick"), {}
    for name, parameter in c.parameters.items():
        readers[name] = Recorded(parameter, parameter.shape)
    exporting.write_folder(tmp_path / "out", c.config, readers, exporting.ExportOptions("float32"))
    assert max(reader.most for reader in readers.values()) <= 2048
    found = tensors_of(tmp_path / "out")
    for name, tensor in exported(c.parameters).items():
        np.testing.assert_array_equal(found[name], tensor, name)

"""Fingerprints of models on disk: equal for the same numbers wherever they are, and different for any other number."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from maverick_jax.errors import InputError
from maverick_jax.huggingface.safetensors_reader import read_folder
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import open_source
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import ShardingRules, single_device_mesh
from tests.helpers import tiny

WIDTH = 320


@pytest.fixture(scope="module")
def model():
    config = tiny.model_config(vocab_size=300, hidden_size=WIDTH, num_hidden_layers=2, num_local_experts=2)
    with jax.set_mesh(single_device_mesh()):
        return jax.jit(lambda: Maverick(config, ShardingRules(), rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A Hugging Face folder. Do not change it."""
    folder = tmp_path_factory.mktemp("model") / "folder"
    save_pretrained(model, folder, dtype="float32")
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def fingerprint(folder) -> str:
    return open_source(folder).fingerprint()


def change(folder, name: str, index: tuple[int, ...], value: float) -> None:
    """Sets one number of a tensor."""
    tensor = read_folder(folder)[0][name]
    values = np.memmap(tensor.file.path, tensor.dtype, "r+", tensor.offset, tensor.shape)
    assert values[index] != value
    values[index] = value
    values.flush()


def names(folder) -> list[str]:
    return sorted(read_folder(folder)[0])


def test_a_copy_has_the_same_fingerprint_however_many_files_it_has(folder, copy, model, tmp_path):
    assert fingerprint(copy) == fingerprint(folder)
    save_pretrained(model, tmp_path / "split", dtype="float32", max_shard_gb=1e-4)
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    assert fingerprint(tmp_path / "split") == fingerprint(folder)


def test_another_dtype_has_another_fingerprint(folder, model, tmp_path):
    save_pretrained(model, tmp_path / "bf16", dtype="bfloat16")
    assert fingerprint(tmp_path / "bf16") != fingerprint(folder)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("model.embed_tokens.weight", (0, 0)),
        ("model.embed_tokens.weight", (7, 256)),
        ("model.embed_tokens.weight", (299, WIDTH - 1)),
        ("model.norm.weight", (WIDTH - 1,)),
        ("lm_head.weight", (299, 300)),
    ],
)
def test_one_number_of_any_column_changes_the_fingerprint(name, index, folder, copy):
    before = fingerprint(copy)
    name = next(found for found in names(copy) if found.endswith(name))
    change(copy, name, index, 0.5)
    assert fingerprint(copy) != before == fingerprint(folder)


def test_the_last_number_of_every_tensor_changes_the_fingerprint(copy):
    found = {fingerprint(copy)}
    for name in names(copy):
        shape = read_folder(copy)[0][name].shape
        change(copy, name, tuple(n - 1 for n in shape), 0.25)
        found.add(fingerprint(copy))
    assert len(found) == 1 + len(names(copy))


def test_numbers_that_change_places_change_the_fingerprint(copy):
    before, name = fingerprint(copy), next(found for found in names(copy) if found.endswith("embed_tokens.weight"))
    tensor = read_folder(copy)[0][name]
    values = np.memmap(tensor.file.path, tensor.dtype, "r+", tensor.offset, tensor.shape)
    values[[3, 4]] = values[[4, 3]]
    values.flush()
    assert fingerprint(copy) != before


def test_a_fingerprint_is_read_once_in_a_process(copy, monkeypatch):
    before = fingerprint(copy)
    monkeypatch.setattr("maverick_jax.huggingface.reader.HuggingFaceFolder.digest", lambda _: pytest.fail("read again"))
    assert fingerprint(copy) == before


def test_a_folder_that_is_no_model_has_no_fingerprint(copy):
    (copy / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError):
        fingerprint(copy)

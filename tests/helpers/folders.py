"""Helpers for tests of folders and checkpoints: write a run directory, and read the files of a folder."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.model.transformer import Maverick
from maverick_jax.pretrained import save_pretrained
from maverick_jax.sharding import make_mesh
from maverick_jax.text import load_tokenizer
from tests.helpers import tiny
from tests.parity.oracle import our_model


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in safetensors.numpy.load_file(path).items()}


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_json(path: pathlib.Path) -> dict:
    return json.loads(path.read_text())


def mesh_of_8():
    return make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}, jax.devices())


def store_run(directory: pathlib.Path, config: ModelConfig, parameters, dtype=np.float32, mesh=None) -> pathlib.Path:
    """Write a run directory with one checkpoint of this model."""
    model = our_model(config.model_copy(update={"param_dtype": str(np.dtype(dtype))}), parameters, mesh)
    store = CheckpointStore(directory / "checkpoints")
    arrays = {f"model/{name}": array for name, array in names.flatten(model).items()}
    arrays["optimizer/count"] = jnp.ones(())
    store.save(7, arrays, {"model": model.config.model_dump(mode="json")}, wait=True)
    return directory


def bytes_model(path: pathlib.Path) -> pathlib.Path:
    """Writes a Hugging Face folder of a small model of bytes."""
    save_pretrained(Maverick.init(tiny.model_config(vocab_size=288, num_hidden_layers=1)), path)
    write_hugging_face(load_tokenizer("bytes"), path)
    return path

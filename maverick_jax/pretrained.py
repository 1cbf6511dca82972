"""Models from and to disk: a run directory, one of its checkpoints, or a Hugging Face folder; and between them."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from maverick_jax.checkpoint import huggingface, names
from maverick_jax.checkpoint.huggingface_names import ROUTER_BIAS
from maverick_jax.checkpoint.safetensors_folder import new_folder, require_new
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.model.transformer import Maverick
from maverick_jax.section import did_you_mean
from maverick_jax.sharding import ShardingRules, single_device_mesh
from maverick_jax.text import Tokenizer, load_tokenizer

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run directory that holds its checkpoints, one numbered folder each."""
MODEL = "model/"
"""Prefix of the model's parameters among the arrays of a checkpoint."""
DTYPES = ("float32", "bfloat16")

Target = dict[str, jax.ShapeDtypeStruct]
"""Shape, dtype and sharding that each parameter is wanted in, by its path."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk: its config, and its parameters as they are asked for."""

    config: ModelConfig
    load: Callable[[Target], dict[str, jax.Array]]
    """Parameters placed directly as the target says; no device and no host holds more than its part of them."""


def load_pretrained(path: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32") -> Maverick:
    """The model at `path`: a run directory (its newest checkpoint), a checkpoint, or a Hugging Face folder.

    `mesh`: where its parameters are placed, split by the default `ShardingRules`; one device if None.
    `dtype`: float32 or bfloat16, of parameters and of computation.
    Raises InputError for a path that is none of these, and for files that do not fit the model they describe.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r}; expected {' or '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")
    source = open_source(path)
    mesh = single_device_mesh() if mesh is None else mesh
    config = source.config.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})
    abstract = abstract_model(config, mesh)
    return names.unflatten(abstract, source.load(names.flatten(abstract)))


def save_pretrained(
    model: Maverick,
    path: str | pathlib.Path,
    dtype: str = "bfloat16",
    tokenizer: Tokenizer | None = None,
    max_shard_gb: float = 5,
    *,
    drop_router_bias: bool = False,
) -> None:
    """Write `model` to `path`, a new Hugging Face folder that transformers (`Llama4ForCausalLM`) and vLLM load.

    `dtype`: float32 or bfloat16, of the files. `tokenizer` is written with it, as `tokenizer.json` with the same ids.
    `max_shard_gb`: most bytes a file, in units of 10^9; a tensor larger than that has a file of its own.
    Raises InputError if `path` exists, or for a model that is no Llama 4: sliding-window attention, or a loss-free
    balance bias that is not zero (unless `drop_router_bias`).
    """
    huggingface.write_folder(
        pathlib.Path(path),
        model.config,
        names.flatten(model),
        dtype=dtype,
        max_shard_gb=max_shard_gb,
        tokenizer=tokenizer,
        drop_router_bias=drop_router_bias,
    )


def abstract_model(config: ModelConfig, mesh: Mesh, rules: ShardingRules | None = None) -> Maverick:
    """`Maverick(config)` whose parameters are only shapes, dtypes and their storage shardings on `mesh`."""
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: Maverick(config, rules or ShardingRules(), rngs=nnx.Rngs(0)))
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec))
    return jax.tree.map(place, abstract)


# ---- where a model is ----------------------------------------------------------------------------------------------


def open_source(path: str | pathlib.Path) -> Source:
    """What is at `path`, opened for reading. Raises InputError if it is no model."""
    path = pathlib.Path(path).expanduser()
    if huggingface.is_folder(path):
        return _open_huggingface(path)
    if (path / CHECKPOINTS).is_dir():
        return _open_checkpoint(path / CHECKPOINTS, None)
    if path.is_dir() and path.name.isdecimal():
        return _open_checkpoint(path.parent, int(path.name))
    found = "no such folder" if not path.is_dir() else "not a model"
    raise InputError(
        f"{path}: {found}; expected a run directory (it holds {CHECKPOINTS}/), one of its checkpoints (a folder named "
        "by its step), or a Hugging Face folder (it holds config.json)"
    )


def _open_huggingface(folder: pathlib.Path) -> Source:
    def load(target: Target) -> dict[str, jax.Array]:
        readers = huggingface.open_parameters(folder, {name: leaf.shape for name, leaf in target.items()})
        return {name: _place(leaf, readers[name]) for name, leaf in target.items()}

    return Source(huggingface.read_model_config(folder), load)


def _place(leaf: jax.ShapeDtypeStruct, reader: huggingface.Reader) -> jax.Array:
    """The array that `leaf` describes; each device's part is read by itself."""
    part = lambda index: reader(index or (), leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def _open_checkpoint(directory: pathlib.Path, step: int | None) -> Source:
    """Checkpoint `step` of a store; None: the newest that verifies. The store is only read: its run may be alive."""
    store = CheckpointStore(directory, read_only=True)
    steps = store.steps()
    if not steps:
        raise InputError(f"{directory}: holds no checkpoint yet")
    config = _config_of(store.meta(steps[-1] if step is None else step), directory)

    def load(target: Target) -> dict[str, jax.Array]:
        stored = {
            MODEL + name: jax.ShapeDtypeStruct(leaf.shape, _stored_dtype(config, name), sharding=leaf.sharding)
            for name, leaf in target.items()
        }
        restored = store.restore(stored, step, subset=True)
        if restored is None:
            raise InputError(f"{directory}: its checkpoints are gone")
        arrays = restored[1]
        return {name: arrays.pop(MODEL + name).astype(leaf.dtype) for name, leaf in target.items()}

    return Source(config, load)


def _config_of(meta: dict, where: pathlib.Path) -> ModelConfig:
    try:
        # As JSON, where a list may stand for a tuple; strict otherwise.
        return ModelConfig.model_validate_json(json.dumps(meta["model"]))
    except KeyError:
        raise InputError(f"{where}: its metadata does not hold the model's config (`model`)") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise InputError(f"{where}: metadata: {key}: {first['msg']} ({error.error_count()} problem(s))") from None


def _stored_dtype(config: ModelConfig, name: str) -> np.dtype:
    """What a checkpoint of this model holds `name` in: a bias that moves by thousandths needs float32."""
    return jnp.dtype("float32" if name.endswith(ROUTER_BIAS) else config.param_dtype)


# ---- from one to another -------------------------------------------------------------------------------------------


def export(checkpoint: str | pathlib.Path, out: str | pathlib.Path, dtype: str = "bfloat16", max_shard_gb: float = 5):
    """The model at `checkpoint` (as for `load_pretrained`) as a new Hugging Face folder `out`, with its tokenizer."""
    require_new(pathlib.Path(out))
    model = load_pretrained(checkpoint, _host_mesh(), dtype)
    save_pretrained(model, out, dtype, _tokenizer_of(checkpoint), max_shard_gb)


def import_checkpoint(source: str | pathlib.Path, out: str | pathlib.Path, dtype: str = "float32") -> None:
    """The model at `source` as a new run directory `out`: one checkpoint, of step 0, and its tokenizer.

    `dtype` of the stored parameters. Raises InputError if `out` exists.
    """
    out, model = pathlib.Path(out), load_pretrained(source, _host_mesh(), dtype)
    meta = {"model": model.config.model_dump(mode="json")}
    with new_folder(out) as aside:
        if tokenizer := _tokenizer_of(source):
            tokenizer.save(aside)
        store = CheckpointStore(aside / CHECKPOINTS)
        store.save(0, {MODEL + name: array for name, array in names.flatten(model).items()}, meta, wait=True)
        store.close()
    log.info("wrote %s: %d parameters, %s", out, model.config.num_parameters(), dtype)


def _host_mesh() -> Mesh:
    """Conversion needs memory, not arithmetic."""
    return single_device_mesh(jax.local_devices(backend="cpu")[0])


def _tokenizer_of(path: str | pathlib.Path) -> Tokenizer | None:
    try:
        return load_tokenizer(path)
    except InputError as error:
        log.warning("no tokenizer is written: %s", error)
        return None

"""Load, save, import and export models: run directories, their checkpoints, and Hugging Face folders."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from maverick_jax import parameters
from maverick_jax.checkpoint import import_stream as importing
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.adapters import RECORD, Adapters
from maverick_jax.checkpoint.names import ADAPTERS, MODEL
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import LiveArray, Reader
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import require_new
from maverick_jax.huggingface import carried
from maverick_jax.huggingface import export as exporting
from maverick_jax.huggingface import reader as huggingface_reader
from maverick_jax.huggingface.peft import CONFIG_FILE as ADAPTER_CONFIG
from maverick_jax.huggingface.peft import PeftAdapter
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Purpose
from maverick_jax.settings.section import did_you_mean
from maverick_jax.sharding import ShardingRules, single_device_mesh
from maverick_jax.text import Tokenizer, find_tokenizer, load_tokenizer

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run directory with its checkpoints, one numbered folder each."""
DTYPES = ("float32", "bfloat16")
_FREE = (Purpose.STORAGE, Purpose.COMPUTATION, Purpose.TRAINING)
"""Purposes of config keys that do not change a model's fingerprint."""
KEEP = "keep"
"""Keep the dtype of the source."""

_fingerprints: dict[str, str] = {}
"""Those of Hugging Face folders that this process has read, by identity."""

Target = dict[str, jax.ShapeDtypeStruct]
"""Path of a parameter -> the shape, dtype and sharding in which to load it."""


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model on disk: its config, and functions that read its parameters."""

    config: ModelConfig
    load: Callable[[Target], dict[str, jax.Array]]
    """Loads parameters directly into the shardings of the target; no device or host holds more than its shards."""
    readers: Callable[[], Mapping[str, Reader]]
    """A reader for every parameter of the model, by path; nothing is loaded."""
    identity: Callable[[], str]
    """Hex digest that changes when the stored values or the path may have changed."""
    require_undamaged: Callable[[], None]
    """Raises InputError if any stored parameter is damaged, for callers that read only some of them. It reads all
    parameters; every process of a job must call it, and each reads a share."""
    fingerprint: Callable[[], str]
    """Hex digest of the network and all its values. Of a checkpoint it is made from the checksums in its metadata; of a
    Hugging Face folder all tensors are read, as they are stored. It does not depend on the path or the number of files,
    but differs between a checkpoint and a folder of the same model, and between folders of two dtypes."""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A checkpoint's metadata; empty for a folder."""
    factors: Callable[[], Mapping[str, Reader]] = dict
    """A reader for each factor of a checkpoint's low-rank adapters, by `checkpoint.adapters.factor_names`."""


def load_pretrained(path: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32") -> Maverick:
    """Load the model at `path`: a run directory (its newest checkpoint), a checkpoint, or a Hugging Face folder.

    `mesh`: devices for the parameters, sharded by the default `ShardingRules`; None means one device.
    `dtype`: float32 or bfloat16, for parameters and computation. Experts of limited capacity take all of their tokens.
    Raises InputError if `path` is none of these, or if the files do not match the config of the model.
    """
    source = open_source(path)
    abstract = abstract_model(_computing_in(dtype, source.config), single_device_mesh() if mesh is None else mesh)
    return names.unflatten(abstract, source.load(names.flatten(abstract)))


def config_of(path: str | pathlib.Path, dtype: str = "float32") -> ModelConfig:
    """The config of `load_pretrained(path, dtype=dtype)`, from metadata only. Raises InputError in the same cases."""
    return _computing_in(dtype, open_source(path).config)


def _computing_in(dtype: str, config: ModelConfig) -> ModelConfig:
    _require_dtype(dtype, DTYPES)
    return config.dropless.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})


def load_into(abstract: Maverick, path: str | pathlib.Path) -> Maverick:
    """Load the model at `path` (as in `load_pretrained`) with the dtypes and shardings of `abstract`, an abstract model
    of the same config."""
    return names.unflatten(abstract, open_source(path).load(names.flatten(abstract)))


def _require_dtype(dtype: str, choices: tuple[str, ...]) -> None:
    if dtype not in choices:
        raise InputError(f"dtype: {dtype!r}; expected {' or '.join(choices)}{did_you_mean(dtype, choices)}")


def save_pretrained(
    model: Maverick,
    path: str | pathlib.Path,
    dtype: str = "bfloat16",
    tokenizer: Tokenizer | None = None,
    max_shard_gb: float = 5,
    *,
    text_only: bool = False,
    quantize: str | None = None,
    group_size: int = 128,
    dialect: str | None = None,
    drop_router_bias: bool = False,
    source: str | pathlib.Path | None = None,
) -> None:
    """Write `model` to `path`, a new Hugging Face folder that transformers and vLLM load: `Llama4ForCausalLM`, or
    `Llama4ForConditionalGeneration` if the model has an image encoder and `text_only` is false.

    `dtype`: float32 or bfloat16, for the files. `tokenizer`: written as `tokenizer.json` with the same ids.
    `max_shard_gb`: largest size of a file, in units of 10^9 bytes; a larger tensor gets a file of its own.
    `quantize`: None, int8 or int4, for feed-forward weights, with a scale per `group_size` inputs.
    `dialect`: tool dialect; writes its chat template and the settings of an instruct model. `source`: the folder or
    run that the model was loaded from, whose context and other public settings are written again.
    Raises InputError if `path` exists or its disk is too full, or if the model is not a Llama 4: it has sliding-window
    attention, or a loss-free balance bias that is not zero (unless `drop_router_bias`).
    """
    options = exporting.options(dtype, max_shard_gb, quantize, group_size, dialect, drop_router_bias)
    readers = {name: LiveArray(name, array) for name, array in names.flatten(model).items()}
    exporting.write_folder(
        path, model.config, readers, options, text_only=text_only, tokenizer=tokenizer, source=source
    )


def abstract_model(config: ModelConfig, mesh: Mesh, rules: ShardingRules | None = None) -> Maverick:
    """`Maverick(config)` with abstract parameters: shapes, dtypes and storage shardings on `mesh`."""
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: Maverick(config, rules or ShardingRules(), rngs=nnx.Rngs(0)))
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec))
    return jax.tree.map(place, abstract)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of each parameter of `Maverick(config)`, in the order of the model's tree."""
    shapes = {p.name: p.full_shape for p in parameters.of_model(config)}
    return dict(sorted(shapes.items(), key=lambda item: item[0].split("/")))


# ---- opening a model -----------------------------------------------------------------------------------------------


def open_source(path: str | pathlib.Path) -> ModelSource:
    """Open the model at `path` for reading. Raises InputError if there is no model."""
    path = pathlib.Path(path).expanduser()
    if huggingface_reader.is_folder(path):
        return _open_huggingface(path)
    if (path / CHECKPOINTS).is_dir():
        return _open_checkpoint(path / CHECKPOINTS, None)
    if path.is_dir() and path.name.isdecimal():
        return _open_checkpoint(path.parent, int(path.name))
    if (path / ADAPTER_CONFIG).is_file():
        merge = f"`maverick import MODEL OUT --adapter {path}` merges it into its model"
        raise InputError(f"{path}: a PEFT adapter, not a model; {merge}")
    found = "no such folder" if not path.is_dir() else "not a model"
    raise InputError(
        f"{path}: {found}; expected a run directory (it holds {CHECKPOINTS}/), one of its checkpoints (a folder named "
        "by its step), or a Hugging Face folder (it holds config.json)"
    )


def _open_huggingface(path: pathlib.Path) -> ModelSource:
    folder = huggingface_reader.HuggingFaceFolder.at(path)

    def load(target: Target) -> dict[str, jax.Array]:
        readers = folder.readers({name: leaf.shape for name, leaf in target.items()})
        return {name: place(leaf, readers[name]) for name, leaf in target.items()}

    readers = lambda: folder.readers(shapes_of(folder.config))

    def fingerprint() -> str:
        if (known := _fingerprints.get(identity := folder.identity())) is not None:
            return known
        readers()  # refuses tensors that are not the model's
        log.info("%s: reading all tensors for their fingerprint", path)
        whole = _network_digest(folder.config)
        whole.update(folder.digest().encode())
        return _fingerprints.setdefault(identity, whole.hexdigest())

    return ModelSource(folder.config, load, readers, folder.identity, lambda: None, fingerprint)


def network_of(config: ModelConfig) -> dict[str, Any]:
    """The config keys that define the network, without those of `_FREE`, as JSON has them."""
    return config.model_dump(mode="json", exclude=set(config.keys_of(*_FREE)))


def _network_digest(config: ModelConfig):
    return hashlib.sha256(json.dumps(network_of(config), sort_keys=True).encode())


def _open_checkpoint(directory: pathlib.Path, step: int | None) -> ModelSource:
    """Checkpoint `step` of a store; None means the newest that passes verification. The store is opened read-only,
    since its run may be alive."""
    store = CheckpointStore(directory, read_only=True)
    steps = store.steps()
    if not steps:
        raise InputError(f"{directory}: no checkpoint yet")
    newest = steps[-1] if step is None else step
    config = _config_of(store.meta(newest), directory)
    adapters = Adapters.of(store.meta(newest), directory)

    def load(target: Target) -> dict[str, jax.Array]:
        dtypes = _stored_dtypes(config)
        stored = {
            MODEL + name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name], sharding=leaf.sharding)
            for name, leaf in target.items()
        }
        adapter_target = adapters.target({name: stored[MODEL + name] for name in target})
        restored = store.restore(
            stored | {ADAPTERS + name: leaf for name, leaf in adapter_target.items()}, step, subset=True
        )
        if restored is None:
            raise InputError(f"{directory}: its checkpoints were deleted")
        arrays = restored[1]
        factors = {name: arrays.pop(ADAPTERS + name) for name in adapter_target}
        merged = lambda name, leaf: adapters.merge(name, arrays.pop(MODEL + name), factors).astype(leaf.dtype)
        return {name: merged(name, leaf) for name, leaf in target.items()}

    def identity() -> str:
        meta = json.dumps([str(directory.absolute()), store.meta(newest)], sort_keys=True)
        return hashlib.sha256(meta.encode()).hexdigest()

    def readers() -> Mapping[str, Reader]:
        found, shapes = store.readers(MODEL, newest), shapes_of(config)
        wrong = [n for n in {**shapes, **found} if n not in found or found[n].shape != shapes.get(n)]
        if wrong:
            raise InputError(f"{directory}: {len(wrong)} array(s) do not match its model: {', '.join(wrong[:5])}")
        return adapters.merged_readers(found, store.readers(ADAPTERS, newest))

    def require_undamaged() -> None:
        store.require_undamaged(newest, MODEL)
        store.require_undamaged(newest, ADAPTERS)

    def fingerprint() -> str:
        meta, whole = store.meta(newest), _network_digest(config)
        used = {name: entry for name, entry in meta["arrays"].items() if name.startswith((MODEL, ADAPTERS))}
        whole.update(json.dumps([used, meta.get(RECORD)], sort_keys=True).encode())
        return whole.hexdigest()

    factors = lambda: store.readers(ADAPTERS, newest)
    return ModelSource(config, load, readers, identity, require_undamaged, fingerprint, store.meta(newest), factors)


def _config_of(meta: dict, where: pathlib.Path) -> ModelConfig:
    try:
        # JSON mode accepts a list for a tuple; otherwise validation is strict.
        config = ModelConfig.model_validate_json(json.dumps(meta["model"]))
    except KeyError:
        raise InputError(f"{where}: its metadata has no model config (`model`)") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise InputError(f"{where}: metadata: {key}: {first['msg']} ({error.error_count()} problem(s))") from None
    # Check this before creating anything whose size depends on the claimed number of layers.
    if len(meta["arrays"]) < len(config.stack.slots):
        raise InputError(f"{where}: holds {len(meta['arrays'])} arrays, too few for the model in its metadata")
    return config


def _stored_dtypes(config: ModelConfig) -> dict[str, np.dtype]:
    """Path -> dtype of each parameter in a checkpoint of this model."""
    return {p.name: jnp.dtype(p.dtype or config.param_dtype) for p in parameters.of_model(config)}


# ---- conversion ----------------------------------------------------------------------------------------------------


def export(
    checkpoint: str | pathlib.Path,
    out: str | pathlib.Path,
    dtype: str = "bfloat16",
    max_shard_gb: float = 5,
    *,
    text_only: bool = False,
    quantize: str | None = None,
    group_size: int = 128,
    dialect: str | None = None,
) -> None:
    """Write the model at `checkpoint` (as in `load_pretrained`) to a new Hugging Face folder `out`, with its tokenizer.

    The arguments are those of `save_pretrained`. Only a few blocks of the model are in memory at a time.
    Raises InputError in the same cases, and for a damaged checkpoint.
    """
    require_new(pathlib.Path(out))
    options = exporting.options(dtype, max_shard_gb, quantize, group_size, dialect)
    source = open_source(checkpoint)
    exporting.write_folder(
        out,
        source.config,
        source.readers(),
        options,
        text_only=text_only,
        tokenizer=tokenizer_of(checkpoint),
        source=checkpoint,
    )


def import_checkpoint(
    source: str | pathlib.Path,
    out: str | pathlib.Path,
    dtype: str = KEEP,
    *,
    adapter: str | pathlib.Path | None = None,
) -> None:
    """Write the model at `source` (as in `load_pretrained`) to a new run directory `out`, which gets one checkpoint (of
    step 0), the model's tokenizer and its public settings (`huggingface.carried`).

    `dtype` of the stored parameters: float32, bfloat16, or keep (that of the source). `adapter`: a PEFT adapter folder
    to merge into them. Only a few blocks of the model are in memory at a time. If it is interrupted, the same call
    resumes it.
    Raises InputError if `out` exists or its disk is too full, and for a malformed or damaged source.
    """
    _require_dtype(dtype, (KEEP, *DTYPES))
    opened = open_source(source)
    config = opened.config
    if dtype != KEEP:
        config = config.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})
    readers, identity = opened.readers(), opened.identity()
    if adapter is not None:
        added = PeftAdapter.at(adapter)
        readers, identity = added.merged(config, readers), identity + added.identity()
    if opened.meta.get(RECORD):
        opened.require_undamaged()  # readers that merge adapters check nothing
    write_run(readers, config, out, identity=identity, like=source)


def write_run(
    readers: Mapping[str, Reader],
    config: ModelConfig,
    out: str | pathlib.Path,
    *,
    identity: str,
    like: str | pathlib.Path,
) -> None:
    """Write parameters to a new run directory `out`, as checkpoint 0. `identity`: text that identifies the values; an
    interrupted call is resumed by an equal one. `like`: the model whose tokenizer and public settings `out` gets.
    Raises InputError as `import_checkpoint` does."""
    leaves, dtypes = names.flatten(abstract_model(config, _host_mesh())), _stored_dtypes(config)
    tokenizer = tokenizer_of(like)
    carried.require_readable(like)

    def add_files(folder: pathlib.Path) -> None:
        if tokenizer is not None:
            tokenizer.save(folder)
        carried.keep(like, folder)

    importing.import_arrays(
        {
            MODEL + name: importing.ImportedArray.of(readers[name], dtypes[name], _split_axes(leaf))
            for name, leaf in leaves.items()
        },
        {"model": config.model_dump(mode="json")},
        pathlib.Path(out),
        identity=identity,
        checkpoint=CHECKPOINTS,
        add_files=add_files,
    )
    log.info("wrote %s: %d parameters, %s", out, config.num_parameters(), config.param_dtype)


def _split_axes(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The axes that a mesh may shard."""
    return tuple(axis for axis, names in enumerate(leaf.sharding.spec) if names is not None)


def _host_mesh() -> Mesh:
    """One CPU device: conversion needs memory, not arithmetic."""
    return single_device_mesh(jax.local_devices(backend="cpu")[0])


def tokenizer_of(path: str | pathlib.Path) -> Tokenizer | None:
    """The model's tokenizer; None (with a warning) if it has none. Raises InputError if it cannot be read, so that a
    model does not lose its tokenizer."""
    path = pathlib.Path(path).expanduser()
    if find_tokenizer(path) is None:
        log.warning("%s has no tokenizer; none is written", path)
        return None
    return load_tokenizer(path)

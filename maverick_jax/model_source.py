"""Models on disk, opened for reading: run directories, their checkpoints, and Hugging Face folders."""

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

from maverick_jax import parameters
from maverick_jax.checkpoint.adapters import RECORD, Adapters
from maverick_jax.checkpoint.averages import averages_of
from maverick_jax.checkpoint.names import ADAPTERS, MODEL, OPTIMIZER
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import Reader, StoredArray
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface import reader as huggingface_reader
from maverick_jax.huggingface.peft import CONFIG_FILE as ADAPTER_CONFIG
from maverick_jax.network import Purpose

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run directory with its checkpoints, one numbered folder each."""
_FREE = (Purpose.STORAGE, Purpose.COMPUTATION, Purpose.TRAINING)
"""Purposes of config keys that do not change a model's fingerprint."""

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


def open_source(path: str | pathlib.Path, *, averaged: bool = False) -> ModelSource:
    """Open the model at `path` for reading. averaged: with the averages that its run kept (`optimizer.average`) in the
    place of what it trained, through the readers only. Raises InputError if there is no model, or no average."""
    path = pathlib.Path(path).expanduser()
    if huggingface_reader.is_folder(path):
        if averaged:
            raise InputError(f"{path}: a Hugging Face folder has no averages; expected a run or a checkpoint")
        return _open_huggingface(path)
    if (path / CHECKPOINTS).is_dir():
        return _open_checkpoint(path / CHECKPOINTS, None, averaged)
    if path.is_dir() and path.name.isdecimal():
        return _open_checkpoint(path.parent, int(path.name), averaged)
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


def _open_checkpoint(directory: pathlib.Path, step: int | None, averaged: bool) -> ModelSource:
    """Checkpoint `step` of a store; None means the newest that passes verification. The store is opened read-only,
    since its run may be alive."""
    store = CheckpointStore(directory, read_only=True)
    steps = store.steps()
    if not steps:
        raise InputError(f"{directory}: no checkpoint yet")
    newest = steps[-1] if step is None else step
    config = _config_of(store.meta(newest), directory)
    adapters = Adapters.of(store.meta(newest), directory)
    averages = averages_of(store.meta(newest)["arrays"]) if averaged else {}
    if averaged and not averages:
        raise InputError(f"{directory}/{newest}: has no averages; expected a run with optimizer.average")

    stored = lambda prefix: _stored(store, newest, prefix, averages)

    def load(target: Target) -> dict[str, jax.Array]:
        dtypes = stored_dtypes(config)
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
        meta = json.dumps([str(directory.absolute()), store.meta(newest), sorted(averages)], sort_keys=True)
        return hashlib.sha256(meta.encode()).hexdigest()

    def readers() -> Mapping[str, Reader]:
        found, shapes = stored(MODEL), shapes_of(config)
        wrong = [n for n in {**shapes, **found} if n not in found or found[n].shape != shapes.get(n)]
        if wrong:
            raise InputError(f"{directory}: {len(wrong)} array(s) do not match its model: {', '.join(wrong[:5])}")
        return adapters.merged_readers(found, stored(ADAPTERS))

    def require_undamaged() -> None:
        store.require_undamaged(newest, MODEL)
        store.require_undamaged(newest, ADAPTERS)
        if averages:
            store.require_undamaged(newest, OPTIMIZER)

    def fingerprint() -> str:
        meta, whole = store.meta(newest), _network_digest(config)
        used = {name: entry for name, entry in meta["arrays"].items() if name.startswith((MODEL, ADAPTERS))}
        whole.update(json.dumps([used, meta.get(RECORD)], sort_keys=True).encode())
        return whole.hexdigest()

    factors = lambda: stored(ADAPTERS)
    return ModelSource(config, load, readers, identity, require_undamaged, fingerprint, store.meta(newest), factors)


def _stored(store: CheckpointStore, step: int, prefix: str, averages: Mapping[str, str]) -> dict[str, StoredArray]:
    """Readers of the arrays under `prefix` by the rest of their names; `averages` in the place of what they are of."""
    instead = {name: average for name, average in averages.items() if name.startswith(prefix)}
    found = store.readers(prefix, step)
    kept = store.readers(OPTIMIZER, step) if instead else {}
    return found | {
        name.removeprefix(prefix): kept[average.removeprefix(OPTIMIZER)] for name, average in instead.items()
    }


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


def stored_dtypes(config: ModelConfig) -> dict[str, np.dtype]:
    """Path -> dtype of each parameter in a checkpoint of this model."""
    return {p.name: jnp.dtype(p.dtype or config.param_dtype) for p in parameters.of_model(config)}


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path -> shape of each parameter of `Maverick(config)`, in the order of the model's tree."""
    shapes = {p.name: p.full_shape for p in parameters.of_model(config)}
    return dict(sorted(shapes.items(), key=lambda item: item[0].split("/")))

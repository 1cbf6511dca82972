"""Models from and to disk: a run directory, one of its checkpoints, or a Hugging Face folder; and between them."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from maverick_jax import parameters
from maverick_jax.checkpoint import import_stream as importing
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.adapters import Adapters
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import LiveArray, Reader
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import require_new, write_json
from maverick_jax.huggingface import (
    export as exporting,
)
from maverick_jax.huggingface import (
    generation_config as generation,
)
from maverick_jax.huggingface import (
    reader as huggingface_reader,
)
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import Purpose
from maverick_jax.settings.section import did_you_mean
from maverick_jax.sharding import ShardingRules, single_device_mesh
from maverick_jax.text import Tokenizer, find_tokenizer, load_tokenizer

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run directory that holds its checkpoints, one numbered folder each."""
MODEL = "model/"
"""Prefix of the model's parameters among the arrays of a checkpoint."""
ADAPTERS = "heads/lora/"
"""Prefix of the factors A and B that low-rank adapters add to them: then the parameter's name, `/a` or `/b`."""
DTYPES = ("float32", "bfloat16")
_FREE = (Purpose.STORAGE, Purpose.COMPUTATION, Purpose.TRAINING)
"""What may differ between two models of one fingerprint."""
KEEP = "keep"
"""The dtype that a source has itself."""

Target = dict[str, jax.ShapeDtypeStruct]
"""Shape, dtype and sharding that each parameter is wanted in, by its path."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A model on disk: its config, and its parameters as they are asked for."""

    config: ModelConfig
    load: Callable[[Target], dict[str, jax.Array]]
    """Parameters placed directly as the target says; no device and no host holds more than its part of them."""
    readers: Callable[[], Mapping[str, Reader]]
    """Every parameter of the model by its path, to be read in parts: nothing is loaded."""
    identity: Callable[[], str]
    """Hexadecimal; the same only while the source holds the same numbers."""
    require_undamaged: Callable[[], None]
    """Raises InputError if the parameters are not those that were saved, for readers that do not read all of them. It
    reads all of them; processes of a job share the work, and all of them call it."""
    fingerprint: Callable[[], str]
    """Hexadecimal, of the network and its numbers: of all of them in a checkpoint, which holds their checksums; of the
    first ones of every layer and expert in a Hugging Face folder. So it follows a model that is moved, and differs
    between the two forms of one. Little is read."""


def load_pretrained(path: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32") -> Maverick:
    """The model at `path`: a run directory (its newest checkpoint), a checkpoint, or a Hugging Face folder.

    `mesh`: where its parameters are placed, split by the default `ShardingRules`; one device if None.
    `dtype`: float32 or bfloat16, of parameters and of computation.
    Raises InputError for a path that is none of these, and for files that do not fit the model they describe.
    """
    source = open_source(path)
    abstract = abstract_model(_computing_in(dtype, source.config), single_device_mesh() if mesh is None else mesh)
    return names.unflatten(abstract, source.load(names.flatten(abstract)))


def config_of(path: str | pathlib.Path, dtype: str = "float32") -> ModelConfig:
    """The config of `load_pretrained(path, dtype=dtype)`. Only metadata is read. Raises InputError as that does."""
    return _computing_in(dtype, open_source(path).config)


def _computing_in(dtype: str, config: ModelConfig) -> ModelConfig:
    _require_dtype(dtype, DTYPES)
    return config.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})


def load_into(abstract: Maverick, path: str | pathlib.Path) -> Maverick:
    """The model at `path` (as for `load_pretrained`) in the dtypes and shardings of `abstract`, which is that model."""
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
) -> None:
    """Write `model` to `path`, a new Hugging Face folder that transformers and vLLM load: `Llama4ForCausalLM`, or
    `Llama4ForConditionalGeneration` if the model has an image encoder and not `text_only`.

    `dtype`: float32 or bfloat16, of the files. `tokenizer` is written with it, as `tokenizer.json` with the same ids.
    `max_shard_gb`: most bytes a file, in units of 10^9; a tensor larger than that has a file of its own.
    `quantize`: None, int8 or int4, of feed-forward weights, with a scale per `group_size` inputs.
    `dialect` of tool calls: writes its chat template and the settings of an instruct model.
    Raises InputError if `path` exists or its disk has no room, or for a model that is no Llama 4: sliding-window
    attention, or a loss-free balance bias that is not zero (unless `drop_router_bias`).
    """
    options = exporting.options(dtype, max_shard_gb, quantize, group_size, dialect, drop_router_bias)
    readers = {name: LiveArray(name, array) for name, array in names.flatten(model).items()}
    exporting.write_folder(path, model.config, readers, options, text_only=text_only, tokenizer=tokenizer)


def abstract_model(config: ModelConfig, mesh: Mesh, rules: ShardingRules | None = None) -> Maverick:
    """`Maverick(config)` whose parameters are only shapes, dtypes and their storage shardings on `mesh`."""
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: Maverick(config, rules or ShardingRules(), rngs=nnx.Rngs(0)))
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec))
    return jax.tree.map(place, abstract)


def shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter of `Maverick(config)`, by its path and in the order of the model's tree."""
    shapes = {p.name: p.full_shape for p in parameters.of_model(config)}
    return dict(sorted(shapes.items(), key=lambda item: item[0].split("/")))


# ---- where a model is ----------------------------------------------------------------------------------------------


def open_source(path: str | pathlib.Path) -> Source:
    """What is at `path`, opened for reading. Raises InputError if it is no model."""
    path = pathlib.Path(path).expanduser()
    if huggingface_reader.is_folder(path):
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


def _open_huggingface(path: pathlib.Path) -> Source:
    folder = huggingface_reader.HuggingFaceFolder.at(path)

    def load(target: Target) -> dict[str, jax.Array]:
        readers = folder.readers({name: leaf.shape for name, leaf in target.items()})
        return {name: place(leaf, readers[name]) for name, leaf in target.items()}

    readers = lambda: folder.readers(shapes_of(folder.config))

    def fingerprint() -> str:
        whole = _network_digest(folder.config)
        for name, reader in sorted(readers().items()):
            some = np.ascontiguousarray(reader(_first_rows(reader.shape), np.dtype(np.float32)), "<f4")
            whole.update(name.encode() + some.tobytes())
        return whole.hexdigest()

    return Source(folder.config, load, readers, folder.identity, lambda: None, fingerprint)


def _first_rows(shape: tuple[int, ...], rows: int = 8192) -> tuple[slice, ...]:
    """The first 256 numbers of each layer and expert: of every index of the leading axes that are `rows` together."""
    found, left = [], rows
    for size in shape[:-1]:
        left //= size
        found.append(slice(0, size if left else 1))
    return *found, slice(0, min(shape[-1], 256))


def _network_digest(config: ModelConfig):
    """SHA-256 of what the parameters are, however they are computed with."""
    network = config.model_dump(mode="json", exclude=set(config.keys_of(*_FREE)))
    return hashlib.sha256(json.dumps(network, sort_keys=True).encode())


def _open_checkpoint(directory: pathlib.Path, step: int | None) -> Source:
    """Checkpoint `step` of a store; None: the newest that verifies. The store is only read: its run may be alive."""
    store = CheckpointStore(directory, read_only=True)
    steps = store.steps()
    if not steps:
        raise InputError(f"{directory}: holds no checkpoint yet")
    newest = steps[-1] if step is None else step
    config = _config_of(store.meta(newest), directory)
    adapters = Adapters.of(store.meta(newest), ADAPTERS, directory)

    def load(target: Target) -> dict[str, jax.Array]:
        dtypes = _stored_dtypes(config)
        stored = {
            MODEL + name: jax.ShapeDtypeStruct(leaf.shape, dtypes[name], sharding=leaf.sharding)
            for name, leaf in target.items()
        }
        beside = adapters.target({name: stored[MODEL + name] for name in target})
        restored = store.restore(stored | {ADAPTERS + name: leaf for name, leaf in beside.items()}, step, subset=True)
        if restored is None:
            raise InputError(f"{directory}: its checkpoints are gone")
        arrays = restored[1]
        factors = {name: arrays.pop(ADAPTERS + name) for name in beside}
        merged = lambda name, leaf: adapters.merge(name, arrays.pop(MODEL + name), factors).astype(leaf.dtype)
        return {name: merged(name, leaf) for name, leaf in target.items()}

    def identity() -> str:
        meta = json.dumps([str(directory.absolute()), store.meta(newest)], sort_keys=True)
        return hashlib.sha256(meta.encode()).hexdigest()

    def readers() -> Mapping[str, Reader]:
        found, shapes = store.readers(MODEL, newest), shapes_of(config)
        wrong = [n for n in {**shapes, **found} if n not in found or found[n].shape != shapes.get(n)]
        if wrong:
            raise InputError(f"{directory}: {len(wrong)} array(s) are not those of its model: {', '.join(wrong[:5])}")
        return adapters.merged_readers(found, store.readers(ADAPTERS, newest))

    def require_undamaged() -> None:
        store.require_undamaged(newest, MODEL)
        store.require_undamaged(newest, ADAPTERS)

    def fingerprint() -> str:
        meta, whole = store.meta(newest), _network_digest(config)
        used = {name: entry for name, entry in meta["arrays"].items() if name.startswith((MODEL, ADAPTERS))}
        whole.update(json.dumps([used, (meta.get("optimizer") or {}).get("lora")], sort_keys=True).encode())
        return whole.hexdigest()

    return Source(config, load, readers, identity, require_undamaged, fingerprint)


def _config_of(meta: dict, where: pathlib.Path) -> ModelConfig:
    try:
        # As JSON, where a list may stand for a tuple; strict otherwise.
        config = ModelConfig.model_validate_json(json.dumps(meta["model"]))
    except KeyError:
        raise InputError(f"{where}: its metadata does not hold the model's config (`model`)") from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("model", *first["loc"])))
        raise InputError(f"{where}: metadata: {key}: {first['msg']} ({error.error_count()} problem(s))") from None
    if len(meta["arrays"]) < len(config.stack.slots):  # before anything of the model's size is made
        raise InputError(f"{where}: holds {len(meta['arrays'])} arrays, too few for the model in its metadata")
    return config


def _stored_dtypes(config: ModelConfig) -> dict[str, np.dtype]:
    """What a checkpoint of this model holds each parameter in."""
    return {p.name: jnp.dtype(p.dtype or config.param_dtype) for p in parameters.of_model(config)}


# ---- from one to another -------------------------------------------------------------------------------------------


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
    """The model at `checkpoint` (as for `load_pretrained`) as a new Hugging Face folder `out`, with its tokenizer.

    Arguments as for `save_pretrained`. The model is never loaded: a few blocks of it are in memory at a time.
    Raises InputError, also for a checkpoint that is damaged.
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
        tokenizer=_tokenizer_of(checkpoint),
        generation=generation.read(pathlib.Path(checkpoint)),
    )


def import_checkpoint(source: str | pathlib.Path, out: str | pathlib.Path, dtype: str = KEEP) -> None:
    """The model at `source` (as for `load_pretrained`) as a new run directory `out`: one checkpoint, of step 0, and
    what came with the model: tokenizer, generation_config.json.

    `dtype` of the stored parameters: float32, bfloat16, or keep: the source's own. The model is never loaded: a few
    blocks of it are in memory at a time. If it is stopped, the same call goes on where it was.
    Raises InputError if `out` exists or its disk has no room, and for a source that does not fit or is damaged.
    """
    _require_dtype(dtype, (KEEP, *DTYPES))
    opened, out = open_source(source), pathlib.Path(out)
    config = opened.config
    if dtype != KEEP:
        config = config.model_copy(update={"param_dtype": dtype, "compute_dtype": dtype})
    readers, leaves = opened.readers(), names.flatten(abstract_model(config, _host_mesh()))
    dtypes = _stored_dtypes(config)
    tokenizer, generation_config = _tokenizer_of(source), generation.read(pathlib.Path(source))

    def add_files(folder: pathlib.Path) -> None:
        if tokenizer is not None:
            tokenizer.save(folder)
        if generation_config is not None:
            write_json(folder / generation.FILE, generation_config)

    importing.import_arrays(
        {
            MODEL + name: importing.ImportedArray.of(readers[name], dtypes[name], _split_axes(leaf))
            for name, leaf in leaves.items()
        },
        {"model": config.model_dump(mode="json")},
        out,
        identity=opened.identity(),
        checkpoint=CHECKPOINTS,
        add_files=add_files,
    )
    log.info("wrote %s: %d parameters, %s", out, config.num_parameters(), config.param_dtype)


def _split_axes(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The axes that a mesh may split."""
    return tuple(axis for axis, names in enumerate(leaf.sharding.spec) if names is not None)


def _host_mesh() -> Mesh:
    """Conversion needs memory, not arithmetic."""
    return single_device_mesh(jax.local_devices(backend="cpu")[0])


def _tokenizer_of(path: str | pathlib.Path) -> Tokenizer | None:
    """None where there is none. Raises InputError for one that cannot be read: a model must not lose its tokenizer."""
    path = pathlib.Path(path).expanduser()
    if find_tokenizer(path) is None:
        log.warning("%s: holds no tokenizer; none is written", path)
        return None
    return load_tokenizer(path)

"""Load, save, import and export models: run directories, their checkpoints, and Hugging Face folders."""

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from maverick_jax.checkpoint import import_stream as importing
from maverick_jax.checkpoint import names
from maverick_jax.checkpoint.adapters import RECORD
from maverick_jax.checkpoint.names import MODEL
from maverick_jax.checkpoint.placement import place
from maverick_jax.checkpoint.readers import LayerSlice, LiveArray, Reader, require_undamaged
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import require_new
from maverick_jax.huggingface import carried
from maverick_jax.huggingface import export as exporting
from maverick_jax.huggingface.peft import PeftAdapter
from maverick_jax.inference.engine.forward import Unrolled
from maverick_jax.model.transformer import Maverick
from maverick_jax.model_source import CHECKPOINTS, open_source, stored_dtypes
from maverick_jax.settings.section import did_you_mean
from maverick_jax.sharding import ShardingRules, single_device_mesh
from maverick_jax.text import Tokenizer, find_tokenizer, load_tokenizer

T = TypeVar("T")
log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16")
KEEP = "keep"
"""Keep the dtype of the source."""


def load_pretrained(path: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32") -> Maverick:
    """Load the model at `path`: a run directory (its newest checkpoint), a checkpoint, or a Hugging Face folder.

    `mesh`: devices for the parameters, sharded by the default `ShardingRules`; None means one device.
    `dtype`: float32 or bfloat16, for parameters and computation. Experts of limited capacity take all of their tokens.
    Raises InputError if `path` is none of these, or if the files do not match the config of the model.
    """
    source = open_source(path)
    abstract = abstract_model(_computing_in(dtype, source.config), single_device_mesh() if mesh is None else mesh)
    return names.unflatten(abstract, source.load(names.flatten(abstract)))


def load_layers(path: str | pathlib.Path, mesh: Mesh | None = None, dtype: str = "float32") -> Unrolled:
    """As `load_pretrained`, in the form in which an engine uses the model: each layer is read into arrays of its own,
    so that no weight is held twice. Raises InputError also for a model that writes no text."""
    source, mesh = open_source(path), single_device_mesh() if mesh is None else mesh
    config, readers = _computing_in(dtype, source.config), source.readers()
    if source.meta.get(RECORD):
        source.require_undamaged()  # readers that merge adapters check nothing
    abstract = _abstract(lambda: Unrolled.of(Maverick(config, ShardingRules(), rngs=nnx.Rngs(0))), mesh)
    arrays = {}
    for name, leaf in names.flatten(abstract).items():
        part, _, rest = name.partition("/")
        if part == "rest":
            arrays[name] = place(leaf, readers[rest])
            continue
        layer, _, in_layer = rest.partition("/")
        slot, index = config.stack.place(int(layer))
        reader = readers[slot.prefix + in_layer]
        arrays[name] = place(leaf, reader if index is None else LayerSlice(reader, index))
    require_undamaged(readers)
    return names.unflatten(abstract, arrays)


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
    drop_latents: bool = False,
    drop_reasoning: bool = False,
    sidecar: bool = False,
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
    attention, a loss-free balance bias that is not zero (unless `drop_router_bias`), latent thoughts that were trained
    (unless `drop_latents`), or reasoning heads that add something or periods that repeat (unless `drop_reasoning`).
    `sidecar` keeps what is not dropped of the last three in a folder beside the plain model, which only we read.
    """
    dropped = {"drop_router_bias": drop_router_bias, "drop_latents": drop_latents, "drop_reasoning": drop_reasoning}
    options = exporting.options(dtype, max_shard_gb, quantize, group_size, dialect, sidecar=sidecar, **dropped)
    readers = {name: LiveArray(name, array) for name, array in names.flatten(model).items()}
    exporting.write_folder(
        path, model.config, readers, options, text_only=text_only, tokenizer=tokenizer, source=source
    )


def abstract_model(config: ModelConfig, mesh: Mesh, rules: ShardingRules | None = None) -> Maverick:
    """`Maverick(config)` with abstract parameters: shapes, dtypes and storage shardings on `mesh`."""
    return _abstract(lambda: Maverick(config, rules or ShardingRules(), rngs=nnx.Rngs(0)), mesh)


def _abstract(make: Callable[[], T], mesh: Mesh) -> T:
    """What `make` makes on `mesh`, with abstract arrays."""
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(make)
    on_mesh = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, x.sharding.spec))
    return jax.tree.map(on_mesh, abstract)


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
    averaged: bool = False,
    drop_latents: bool = False,
    drop_reasoning: bool = False,
    sidecar: bool = False,
) -> None:
    """Write the model at `checkpoint` (as in `load_pretrained`) to a new Hugging Face folder `out`, with its tokenizer.

    The arguments are those of `save_pretrained`, and `averaged` that of `open_source`. Only a few blocks of the model
    are in memory at a time.
    Raises InputError in the same cases, and for a damaged checkpoint.
    """
    dropped = {"drop_latents": drop_latents, "drop_reasoning": drop_reasoning}
    require_new(pathlib.Path(out))
    options = exporting.options(dtype, max_shard_gb, quantize, group_size, dialect, sidecar=sidecar, **dropped)
    source = open_source(checkpoint, averaged=averaged)
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
    averaged: bool = False,
) -> None:
    """Write the model at `source` (as in `load_pretrained`) to a new run directory `out`, which gets one checkpoint (of
    step 0), the model's tokenizer and its public settings (`huggingface.carried`).

    `dtype` of the stored parameters: float32, bfloat16, or keep (that of the source). `adapter`: a PEFT adapter folder
    to merge into them. `averaged`: as in `open_source`. Only a few blocks of the model are in memory at a time. If it
    is interrupted, the same call resumes it.
    Raises InputError if `out` exists or its disk is too full, and for a malformed or damaged source.
    """
    _require_dtype(dtype, (KEEP, *DTYPES))
    opened = open_source(source, averaged=averaged)
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
    leaves, dtypes = names.flatten(abstract_model(config, _host_mesh())), stored_dtypes(config)
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

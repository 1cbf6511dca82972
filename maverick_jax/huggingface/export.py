"""Write Hugging Face folders from readers of our parameters, a few blocks at a time, for models of any size."""

import dataclasses
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from maverick_jax.checkpoint.readers import Reader, require_undamaged
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import new_folder, require_new, write_json
from maverick_jax.huggingface import carried, extensions, tensor_blocks
from maverick_jax.huggingface import config as huggingface_config
from maverick_jax.huggingface import names as huggingface_names
from maverick_jax.huggingface.generation_config import IDS, generation_config, token_ids
from maverick_jax.huggingface.names import Entry
from maverick_jax.huggingface.processor_files import write_processor
from maverick_jax.huggingface.quantize import Quantization, quantized_views
from maverick_jax.huggingface.safetensors_writer import Made, Planned, TensorHeader, total_bytes, write_tensors
from maverick_jax.huggingface.tensor_blocks import View
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.images import ImageConfig
from maverick_jax.parameters import ROUTER_BIAS
from maverick_jax.progress import ByteProgress
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import find_dialect

log = logging.getLogger(__name__)

DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}
CHUNKS_PER_CONTEXT = 32
"""Chunks in `max_position_embeddings` of a model that is ours, as in the released base models; the network does not
depend on it."""
_OTHER_FILES_BYTES = 64 * 2**20
"""Disk space reserved for the tokenizer and other small files."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of an export. Raises InputError for unsupported values."""

    dtype: str = "bfloat16"
    """dtype of the tensors (rounded to nearest even); with quantization, of the scales and the other tensors."""
    max_shard_gb: float = 5
    """Largest size of a file, in units of 10^9 bytes; a larger tensor gets a file of its own."""
    quantization: Quantization | None = None
    dialect: str | None = None
    """Tool dialect of the chat template; setting it exports an instruct model."""
    drop_reasoning: bool = False
    """Leave out reasoning heads even if they add something, and run every layer once."""
    drop_router_bias: bool = False
    """Leave out loss-free balance biases even if they are not zero."""
    drop_latents: bool = False
    """Leave out the feedback of latent thoughts even if it was trained."""
    sidecar: bool = False
    """Keep what is not dropped of these in a folder beside the plain model (`extensions`)."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """What is left out of what Llama 4 lacks, by the names of `extensions.KEYS`."""
        chosen = {extensions.LATENTS: self.drop_latents, extensions.REASONING: self.drop_reasoning}
        return tuple(name for name, drop in chosen.items() if drop)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            near = did_you_mean(self.dtype, DTYPES)
            raise InputError(f"dtype: {self.dtype!r}; expected {' or '.join(DTYPES)}{near}")
        if not self.max_shard_gb > 0:
            raise InputError(f"max_shard_gb: {self.max_shard_gb}; expected a positive number of gigabytes")
        if self.dialect is not None:
            find_dialect(self.dialect)


def options(
    dtype: str,
    max_shard_gb: float,
    quantize: str | None = None,
    group_size: int = 128,
    dialect: str | None = None,
    drop_router_bias: bool = False,
    drop_latents: bool = False,
    drop_reasoning: bool = False,
    sidecar: bool = False,
) -> ExportOptions:
    """`ExportOptions` from a user's arguments. Raises InputError for unsupported values."""
    quantization = Quantization(quantize, group_size) if quantize else None
    dropped = {"drop_router_bias": drop_router_bias, "drop_latents": drop_latents, "drop_reasoning": drop_reasoning}
    return ExportOptions(dtype, max_shard_gb, quantization, dialect, sidecar=sidecar, **dropped)


def write_folder(
    path: str | pathlib.Path,
    config: ModelConfig,
    readers: Mapping[str, Reader],
    options: ExportOptions,
    *,
    text_only: bool = False,
    tokenizer: Tokenizer | None = None,
    source: str | pathlib.Path | None = None,
) -> None:
    """Write the folder `path`, which transformers and vLLM load. It appears only when it is complete and verified.

    `readers`: our parameters, by path. `text_only` leaves out the image encoder. `source`: the run directory,
    checkpoint or folder that the model is from; what its public files say beside the network is written again.
    Raises InputError before anything is written if the model is not a Llama 4, `path` exists or the disk is too full;
    and before `path` appears if the source is damaged.
    """
    path = pathlib.Path(path)
    require_new(path)
    if text_only:
        config, readers = _text_of(config, readers)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"tokenizer: has {tokenizer.vocab_size} ids; the model's vocab_size is {config.vocab_size}")
    theirs = None if source is None else carried.read(source, carried.CONFIG)
    generation = None if source is None else carried.read(source, carried.GENERATION)
    generated = generation_config(config, tokenizer, generation or carried.token_ids(theirs, IDS), options.dialect)
    context = carried.context_of(theirs) or CHUNKS_PER_CONTEXT * (config.attention_chunk_size or config.floor_scale)
    config_json = huggingface_config.write_config(config, options.dtype, token_ids(generated), context)
    config_json = carried.with_theirs(config_json, theirs)
    if options.quantization:
        config_json["quantization_config"] = options.quantization.config_json()
    unbiased = _without_router_bias(readers, options.drop_router_bias)
    divided = extensions.split(config, unbiased, options.dropped, options.sidecar)
    plan = _plan(divided.plain, options)
    beside = [_beside(name, reader, options) for name, reader in divided.beside.items()]
    _require_space(path, total_bytes(plan) + total_bytes(beside) + _OTHER_FILES_BYTES)

    with new_folder(path) as aside:
        write_json(aside / "config.json", config_json)
        write_json(aside / "generation_config.json", generated)
        if tokenizer is not None:
            write_hugging_face(tokenizer, aside, options.dialect)
        if config.vision is not None:
            write_processor(ImageConfig.of(config.vision), aside)
        if source is not None:
            processor = () if config.vision is None else carried.PROCESSOR
            template = () if options.dialect else (carried.CHAT_TEMPLATE,)
            carried.copy(source, aside, (*processor, *template))
        parameters = sum(math.prod(reader.shape) for reader in divided.plain.values())
        with ByteProgress(f"writing {path.name}", total_bytes(plan)) as progress:
            write_tensors(aside, plan, options.max_shard_gb, parameters, progress.advance)
        extensions.write(aside, divided.kept, beside)
        require_undamaged(readers)
    kind = options.quantization.kind if options.quantization else options.dtype
    log.info("wrote %s: %d parameters, %s, %.3f GB", path, parameters, kind, total_bytes(plan) / 1e9)
    if options.dtype == "bfloat16" and config.param_dtype == "float32":
        log.info(
            "%s: its tensors are the model's float32 parameters, rounded to bfloat16, so its logits differ a little "
            "from the model's; --dtype float32 writes them as they are", path
        )  # fmt: skip


def _text_of(config: ModelConfig, readers: Mapping[str, Reader]) -> tuple[ModelConfig, dict[str, Reader]]:
    if config.vision is None:
        raise InputError("text_only: the model has no image encoder; remove this option")
    text = {name: reader for name, reader in readers.items() if not name.startswith(huggingface_names.VISION_PREFIX)}
    return config.model_copy(update={"vision": None}), text


def _plan(readers: Mapping[str, Reader], options: ExportOptions) -> list[Planned]:
    kind, dtype = DTYPES[options.dtype]
    plan: list[Planned] = []
    for entry in huggingface_names.table({name: tuple(reader.shape) for name, reader in readers.items()}):
        reader, quantization = readers[entry.ours], options.quantization
        if quantization and (views := quantized_views(entry, tuple(reader.shape))):
            quantization.require_fits(views)
            plan += [quantization.plan(view, reader, kind, dtype) for view in views]
        else:
            plan.append(_plain(entry, reader, kind, dtype))
    return plan


def _plain(entry: Entry, reader: Reader, kind: str, dtype: np.dtype) -> Planned:
    view = View.of(entry)

    def parts() -> Iterator[Callable[[], Made]]:
        for block in view.blocks(reader, dtype, tensor_blocks.BLOCK_BYTES):
            yield lambda block=block: [(view.name, block())]

    return Planned((TensorHeader(view.name, kind, view.shape),), parts)


def _beside(name: str, reader: Reader, options: ExportOptions) -> Planned:
    """A parameter in the sidecar, in our shape."""
    kind, dtype = DTYPES[options.dtype]
    header = TensorHeader(extensions.tensor_name(name), kind, tuple(reader.shape))

    def parts() -> Iterator[Callable[[], Made]]:
        for i in range(reader.shape[0]):
            index = (slice(i, i + 1), *(slice(0, size) for size in reader.shape[1:]))
            yield lambda index=index: [(header.name, np.ascontiguousarray(reader(index, dtype)))]

    return Planned((header,), parts)


def _without_router_bias(readers: Mapping[str, Reader], drop: bool) -> dict[str, Reader]:
    """All parameters except the loss-free balance bias, which Llama 4 lacks. Raises InputError if a bias is not zero,
    unless `drop`."""
    biases = [name for name in readers if name.endswith(ROUTER_BIAS)]
    live = extensions.not_zero(readers, biases)
    if live and not drop:
        raise InputError(
            f"{live[0]} is not zero: the balance bias affects the choice of experts and Llama 4 has no such parameter, "
            "so the exported model would choose other experts; pass drop_router_bias=True to accept that"
        )
    if live:
        log.warning("dropped the balance bias of %d parameters; the exported model may choose other experts", len(live))
    return {name: reader for name, reader in readers.items() if name not in biases}


def _require_space(path: pathlib.Path, needed: int) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{path}: needs {needed / 1e9:.3f} GB; its disk has {free / 1e9:.3f} GB free")

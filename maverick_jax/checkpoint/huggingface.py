"""Hugging Face folders of Llama 4: opened as readers of our parameters, and written from them.

Both directions go tensor by tensor: reading maps the files and touches only the bytes that a device asks for, writing
holds one file's tensors on the host at a time. Config and names are in the modules beside this one.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from maverick_jax.checkpoint import huggingface_config, huggingface_names
from maverick_jax.checkpoint.huggingface_names import ROUTER_BIAS, Entry
from maverick_jax.checkpoint.safetensors_folder import (
    DTYPES,
    Planned,
    Stored,
    listed,
    new_folder,
    read_folder,
    read_json,
    write_json,
    write_tensors,
)
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.section import did_you_mean
from maverick_jax.text import Tokenizer
from maverick_jax.text.export import write_hugging_face

log = logging.getLogger(__name__)

EXPORT_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CHUNKS_PER_CONTEXT = 32
"""Released base models state a context of 32 chunks; nothing in the network depends on the number."""

_TEXT_PREFIX = "language_model."
_VISION_PREFIXES = ("vision_model.", "multi_modal_projector.")


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reader:
    """One of our parameters, readable in parts: called with a slice per dimension, gives that part as NumPy."""

    shape: tuple[int, ...]
    parts: tuple[tuple[Entry, Stored], ...]
    """One per layer along the period axis, in order; a single one where the parameter has no such axis."""

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        if self.parts[0][0].period is None:
            entry, stored = self.parts[0]
            return np.asarray(entry.read(stored.open())[index], dtype)
        layers = self.parts[index[0]]
        return np.stack([np.asarray(entry.read(stored.open())[index[1:]], dtype) for entry, stored in layers])


def is_folder(path: pathlib.Path) -> bool:
    return (path / "config.json").is_file()


def read_model_config(folder: pathlib.Path) -> ModelConfig:
    """The text model of a Hugging Face folder. Raises InputError for one we would compute differently."""
    path = folder / "config.json"
    return huggingface_config.read_config(read_json(path), str(path))


def open_parameters(folder: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Reader]:
    """A reader for each of our parameters (`shapes`: its shape by its path).

    Only headers are read here. Raises InputError that lists all missing, unexpected, misshaped and quantised tensors.
    A multimodal folder gives its text model; the log says how many tensors are left out.
    """
    multimodal = huggingface_config.is_multimodal(read_json(folder / "config.json"))
    stored = read_folder(folder)
    if multimodal:
        stored = _text_only(stored, folder)
    entries = huggingface_names.table(shapes)
    _check(entries, stored, folder)
    parts: dict[str, list[tuple[Entry, Stored]]] = {}
    for entry in entries:  # forward order, hence ascending periods
        parts.setdefault(entry.ours, []).append((entry, stored[entry.theirs]))
    return {name: Reader(tuple(shapes[name]), tuple(parts[name])) for name in shapes}


def _text_only(stored: dict[str, Stored], folder: pathlib.Path) -> dict[str, Stored]:
    vision = [name for name in stored if name.startswith(_VISION_PREFIXES)]
    log.warning("%s is multimodal: its text model is loaded, its %d vision tensors are left out", folder, len(vision))
    return {name.removeprefix(_TEXT_PREFIX): tensor for name, tensor in stored.items() if name not in set(vision)}


def _check(entries: list[Entry], stored: dict[str, Stored], folder: pathlib.Path) -> None:
    expected = {entry.theirs: entry.their_shape for entry in entries}
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in stored]
    for name, tensor in stored.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {list(tensor.shape)}{did_you_mean(name, expected)}")
        elif tensor.shape != expected[name]:
            problems.append(f"shape: {name} is {list(tensor.shape)}; config.json implies {list(expected[name])}")
        elif tensor.type not in DTYPES:
            problems.append(f"type: {name} is {tensor.type}; expected one of {', '.join(DTYPES)}")
    if problems:
        raise InputError(f"{folder}: tensors do not fit config.json: {listed(problems)}")


# ---- writing -------------------------------------------------------------------------------------------------------


def write_folder(
    path: pathlib.Path,
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    *,
    dtype: str,
    max_shard_gb: float,
    tokenizer: Tokenizer | None = None,
    drop_router_bias: bool = False,
) -> None:
    """Writes `path`, which transformers and vLLM load as `Llama4ForCausalLM`; it appears complete or not at all.

    `parameters`: ours, by path. `dtype`: of the written tensors, float32 or bfloat16 (rounded to nearest even).
    Raises InputError for a model that is no Llama 4, for arrays that this process does not hold whole, and if `path`
    exists.
    """
    if dtype not in EXPORT_DTYPES:
        raise InputError(f"dtype: {dtype!r}; expected {' or '.join(EXPORT_DTYPES)}{did_you_mean(dtype, EXPORT_DTYPES)}")
    if max_shard_gb <= 0:
        raise InputError(f"max_shard_gb: {max_shard_gb}; expected a positive number of gigabytes")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise InputError(f"tokenizer: has {tokenizer.vocab_size} ids; the model's vocab_size is {config.vocab_size}")
    context = CHUNKS_PER_CONTEXT * (config.attention_chunk_size or config.floor_scale)
    ids = _token_ids(tokenizer)
    config_json = huggingface_config.write_config(config, dtype, ids, context)
    parameters = _without_router_bias(parameters, drop_router_bias)
    if away := [name for name, p in parameters.items() if not getattr(p, "is_fully_addressable", True)]:
        raise InputError(f"export: {away[0]} is spread over several processes; export from a single process")

    with new_folder(path) as aside:
        write_json(aside / "config.json", config_json)
        write_json(aside / "generation_config.json", _generation_config(config, ids))
        if tokenizer is not None:
            write_hugging_face(tokenizer, aside)
        target = EXPORT_DTYPES[dtype]
        tensors = [_plan(entry, parameters[entry.ours], target) for entry in _entries(parameters)]
        write_tensors(aside, tensors, max_shard_gb, sum(math.prod(p.shape) for p in parameters.values()))
    log.info("wrote %s: %d tensors, %s", path, len(tensors), dtype)


def _entries(parameters: Mapping[str, jax.Array]) -> list[Entry]:
    return huggingface_names.table({name: p.shape for name, p in parameters.items()})


def _plan(entry: Entry, parameter: jax.Array, dtype: np.dtype) -> Planned:
    size = math.prod(entry.their_shape) * dtype.itemsize
    return Planned(entry.theirs, size, lambda: entry.export(parameter, dtype))


def _without_router_bias(parameters: Mapping[str, jax.Array], drop: bool) -> dict[str, jax.Array]:
    """All parameters but the loss-free bias, which Llama 4 lacks; it may be left out silently only where it is zero."""
    biases = {name: p for name, p in parameters.items() if name.endswith(ROUTER_BIAS)}
    live = [name for name, bias in biases.items() if np.any(np.asarray(bias) != 0)]
    if live and not drop:
        raise InputError(
            f"{live[0]} is not zero: the balance bias takes part in the choice of experts and Llama 4 has no place for "
            "it, so the exported model would choose differently; pass drop_router_bias=True to accept that"
        )
    if live:
        log.warning("dropped the balance bias of %d parameters: the export chooses experts without it", len(live))
    return {name: p for name, p in parameters.items() if name not in biases}


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}


def _generation_config(config: ModelConfig, ids: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in ids.items() if value is not None}
    # vLLM takes this switch from here and not from config.json
    return known | {"attn_temperature_tuning": config.attn_temperature_tuning}

"""What a model has beyond Llama 4: latent thoughts, reasoning heads and periods that repeat. An export leaves it out if
it adds nothing, refuses it, drops it, or keeps it in a sidecar, a folder beside the plain model.

The sidecar has `extensions.json`, with the keys of the model's config, and `extensions.safetensors`, with our
parameters under their paths, dots for slashes. Other programs do not look into folders of a model and read the plain
one; we read both as the model that was exported.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pydantic

from maverick_jax import parameters
from maverick_jax.checkpoint.readers import Reader
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import listed, read_json, sync, write_json
from maverick_jax.huggingface.safetensors_reader import Stored, read_header, require_inside
from maverick_jax.huggingface.safetensors_writer import SINGLE_FILE, Planned, write_tensors
from maverick_jax.parameters import LATENT_PREFIX

log = logging.getLogger(__name__)

FOLDER, CONFIG, TENSORS = "maverick_extensions", "extensions.json", "extensions.safetensors"
VERSION = 1
"""Of the sidecar; another one is refused."""
MAX_BYTES = 1 << 16
_TYPES = ("F32", "BF16")

LATENTS, REASONING = "latents", "reasoning"
KEYS = {LATENTS: ("latent",), REASONING: ("reasoning_heads", "loops")}
"""Keys of the model's config by the name under which they are dropped."""


def names_of(config: ModelConfig) -> dict[str, list[str]]:
    """The paths of the parameters that Llama 4 lacks, by the name under which they are dropped."""
    table = parameters.of_model(config)
    return {
        LATENTS: [p.name for p in table if p.name.startswith(LATENT_PREFIX)],
        REASONING: [p.name for p in table if p.role == "reasoning"],
    }


def without(config: ModelConfig, dropped: Iterable[str]) -> ModelConfig:
    """The config without what is `dropped`."""
    return config.model_copy(update={key: None for part in dropped for key in KEYS[part]})


# ---- what an export does with it -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Split:
    """The parameters of a model, divided."""

    plain: dict[str, Reader]
    beside: dict[str, Reader]
    """Those of a sidecar."""
    kept: dict[str, Any]
    """The config's keys of the sidecar; empty: there is none."""


def split(config: ModelConfig, readers: Mapping[str, Reader], dropped: Iterable[str], sidecar: bool) -> Split:
    """What the plain folder has, and what its sidecar. Raises InputError if the model computes something that the plain
    one does not, unless that is `dropped` or there is a `sidecar`."""
    own, dropped = names_of(config), set(dropped)
    plain = {name: reader for name, reader in readers.items() if name not in {*own[LATENTS], *own[REASONING]}}
    there = {part: [key for key in keys if getattr(config, key)] for part, keys in KEYS.items()}
    parts = [part for part in KEYS if sidecar and part not in dropped and there[part]]
    if sidecar and not parts:
        raise InputError("--sidecar: the model has no latent thoughts, reasoning heads or loops to keep; remove it")
    for part in KEYS:
        if part not in parts:
            _require_nothing_added(config, part, {name: readers[name] for name in own[part]}, part in dropped)
    kept = {key: getattr(config, key).model_dump(mode="json") for part in parts for key in there[part]}
    if kept:
        log.warning("kept in %s: %s; other programs read the plain model, which computes something else", FOLDER,
                    ", ".join(kept))  # fmt: skip
    return Split(plain, {name: readers[name] for part in parts for name in own[part]}, kept)


def _require_nothing_added(config: ModelConfig, part: str, readers: Mapping[str, Reader], drop: bool) -> None:
    """Raises InputError if this part of the model adds something, and is not to be dropped."""
    live = not_zero(readers, [name for name in readers if part == LATENTS or name.endswith("/o")])
    problems = [f"{live[0]} is not zero: Llama 4 has no {_WORDS[part]}"] if live else []
    times = config.loops.times if config.loops and part == REASONING else 1
    problems += [f"loops.times is {times}: Llama 4 runs each layer once"] if times > 1 else []
    if problems and not drop:
        raise InputError(
            f"{', and '.join(problems)}, so the exported model would compute something else; keep it in a file beside "
            f"the plain model with --sidecar (sidecar=True), leave it out with --drop {part} (drop_{part}=True), or "
            "distill it into a plain model"
        )
    if problems:
        log.warning("dropped what Llama 4 has no place for: %s; %s", "; ".join(problems), _AFTER[part])


_WORDS = {LATENTS: "latent thoughts", REASONING: "reasoning heads"}
_AFTER = {
    LATENTS: "the exported model is the same in texts without latents",
    REASONING: "the exported model computes something else",
}


def not_zero(readers: Mapping[str, Reader], chosen: Iterable[str]) -> list[str]:
    """Which of the parameters `chosen` have another element than 0; each is read in parts, to its end, as the checksums
    of checkpoints need."""
    parts = lambda shape: ((slice(i, i + 1), *(slice(0, size) for size in shape[1:])) for i in range(shape[0]))
    live = lambda reader: sum(np.count_nonzero(reader(part, np.dtype(np.float32))) for part in parts(reader.shape))
    return [name for name in chosen if live(readers[name])]


# ---- the sidecar -----------------------------------------------------------------------------------------------------


def tensor_name(ours: str) -> str:
    return ours.replace("/", ".")


def write(model: pathlib.Path, kept: Mapping[str, Any], plan: list[Planned]) -> None:
    """Writes the sidecar of the folder `model`: the config's keys, and tensors under `tensor_name`. No keys: none."""
    if not kept:
        return
    folder = model / FOLDER
    folder.mkdir()
    write_json(folder / CONFIG, {"version": VERSION, "model": dict(kept)})
    if plan:
        write_tensors(folder, plan, float("inf"), 0)
        (folder / SINGLE_FILE).rename(folder / TENSORS)
    for file in folder.iterdir():
        sync(file)


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """The sidecar of a folder, of which only the config and the header have been read."""

    config: ModelConfig
    """Of the whole model."""
    stored: Mapping[str, Stored]
    """By our path."""


def read(model: pathlib.Path, config: ModelConfig) -> Sidecar:
    """The sidecar of the folder `model`, whose plain model has this config; the plain model if there is none. Raises
    InputError for a malformed one, for one that is not the model's and for files outside the folder."""
    folder = model / FOLDER
    if not folder.is_dir():
        return Sidecar(config, {})
    require_inside(folder / CONFIG, model)
    given = read_json(folder / CONFIG, MAX_BYTES)
    whole = _with_keys(config, given, str(folder / CONFIG))
    expected = {p.name: p for p in parameters.of_model(whole)}
    wanted = [name for names in names_of(whole).values() for name in names]
    found: dict[str, Stored] = {}
    if (folder / TENSORS).exists():
        require_inside(folder / TENSORS, model)
        found = read_header(folder / TENSORS)
    by_tensor = {tensor_name(name): name for name in wanted}
    problems = [f"unexpected: {name}" for name in found if name not in by_tensor]
    for tensor, name in by_tensor.items():
        shape = expected[name].full_shape
        if tensor not in found:
            problems.append(f"missing: {tensor} {list(shape)}")
        elif found[tensor].shape != shape or found[tensor].type not in _TYPES:
            is_a = f"{found[tensor].type} {list(found[tensor].shape)}"
            problems.append(f"{tensor} is {is_a}; expected {list(shape)} of {' or '.join(_TYPES)}")
    if problems:
        raise InputError(f"{folder / TENSORS}: tensors do not match {CONFIG}: {listed(problems)}")
    return Sidecar(whole, {name: found[tensor] for tensor, name in by_tensor.items()})


def _with_keys(config: ModelConfig, given: Mapping[str, Any], where: str) -> ModelConfig:
    """The plain config with the keys that the sidecar gives."""
    known = {key for keys in KEYS.values() for key in keys}
    keys = given.get("model")
    if given.keys() != {"version", "model"} or given["version"] != VERSION or not isinstance(keys, dict):
        raise InputError(f"{where}: expected version {VERSION} and model, a mapping")
    if unknown := [key for key in keys if key not in known]:
        raise InputError(f"{where}: model.{unknown[0]:.80} is not one of {', '.join(sorted(known))}")
    try:
        # JSON mode accepts a list for a tuple; otherwise validation is strict.
        return ModelConfig.model_validate_json(json.dumps(config.model_dump(mode="json") | keys))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: model.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

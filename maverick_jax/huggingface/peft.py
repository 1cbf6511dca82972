"""PEFT adapter folders: low-rank adapters for transformers' Llama 4 classes, beside the model and not merged into it.

`adapter_model.safetensors` has two tensors per linear module: `base_model.model.MODULE.lora_A.weight` [r, in] and
`...lora_B.weight` [out, r]; the module computes x W + scale x A^T B^T. `adapter_config.json` has the rank and the
scale. Routed experts are parameters, not modules: PEFT adapts them in recent versions only, under names that depend on
the order of its targets. Their adapters are refused; a merged export has them.
"""

import dataclasses
import hashlib
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pydantic

from maverick_jax import parameters
from maverick_jax.checkpoint.adapters import Adapters, AdapterSettings
from maverick_jax.checkpoint.readers import Reader, require_undamaged
from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import listed, new_folder, read_json, write_json
from maverick_jax.huggingface import extensions
from maverick_jax.huggingface import names as huggingface_names
from maverick_jax.huggingface.names import TEXT_PREFIX, Entry, Linear
from maverick_jax.huggingface.safetensors_reader import Stored, read_header
from maverick_jax.huggingface.safetensors_writer import SINGLE_FILE, Planned, TensorHeader, write_tensors
from maverick_jax.huggingface.tokenizer_files import write_hugging_face
from maverick_jax.text import Tokenizer

log = logging.getLogger(__name__)

CONFIG_FILE, TENSORS_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_BASE, _WEIGHT = "base_model.model.", ".weight"
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_TYPES = {"float32": "F32", "bfloat16": "BF16"}
_SETTINGS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "peft_type")
_FREE = {
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"),
    *("megatron_core", "init_lora_weights", *_SETTINGS),
}
"""Keys of `adapter_config.json` that do not change what the tensors mean, or that are read."""
_INITIAL = (None, True, False, "gaussian", "kaiming", "orthogonal", "eva")
"""Ways to initialize that leave the base model as it is."""


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """An adapter folder, of which only the config and the header have been read."""

    path: pathlib.Path
    settings: AdapterSettings
    dropout: float
    tensors: Mapping[tuple[str, str], Stored]
    """By the module's name in a text model, such as `model.layers.0.self_attn.q_proj`, and `A` or `B`."""

    @classmethod
    def at(cls, path: str | pathlib.Path) -> "PeftAdapter":
        """Open a folder. Raises InputError for one that is malformed or that does more than x W + scale x A B."""
        folder = pathlib.Path(path).expanduser()
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(f"{folder}: no PEFT adapter; expected a folder with {CONFIG_FILE} and {TENSORS_FILE}")
        if not (folder / TENSORS_FILE).is_file():
            pickled = f"; {PICKLE_FILE} is a pickle, which is never loaded" if (folder / PICKLE_FILE).exists() else ""
            raise InputError(f"{folder}: no {TENSORS_FILE}{pickled}")
        settings, dropout = _read_settings(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
        return cls(folder, settings, dropout, _factors(folder / TENSORS_FILE, settings.rank))

    @property
    def matrices(self) -> set[tuple[str, str]]:
        """The matrices with adapters in any layer: the part of a layer (`self_attn`, `feed_forward`, `shared_expert`)
        and the name (`q_proj`). Those of pictures have the part `vision`, `adapter` or `projector`."""
        parts = ((module, module.split(".")) for module, _ in self.tensors)
        return {(_part_of_pictures(module) or names[-2], names[-1]) for module, names in parts if len(names) > 1}

    def factors(self, config: ModelConfig) -> dict[str, np.ndarray]:
        """Our factors A and B of a model's parameters, float32, by `checkpoint.adapters.factor_names`. Raises
        InputError if they do not fit the model."""
        entries: dict[str, list[Entry]] = {}
        for entry in _linear_entries(config):
            entries.setdefault(entry.ours, []).append(entry)
        problems: list[str] = []
        known = {_module(entry) for parts in entries.values() for entry in parts}
        unknown = sorted({module for module, _ in self.tensors} - known)
        problems += [f"{module}: the model has no such matrix" for module in unknown]
        found: dict[str, np.ndarray] = {}
        for name, parts in entries.items():
            there = [entry for entry in parts if (_module(entry), "A") in self.tensors]
            if missing := [_module(entry) for entry in parts if entry not in there and there]:
                problems.append(f"{missing[0]}: has no adapter, but other layers' {name.rpartition('/')[2]} have one")
            elif there:
                wrong = [problem for entry in parts for problem in self._misshapen(entry)]
                problems += wrong
                if not wrong:
                    found |= {f"{name}/{side}": self._stacked(parts, side) for side in "ab"}
        if problems:
            raise InputError(f"{self.path}: the adapters do not fit the model: {listed(problems)}")
        return found

    def merged(self, config: ModelConfig, readers: Mapping[str, Reader]) -> dict[str, Reader]:
        """The readers of a model's parameters with these adapters merged."""
        factors = self.factors(config)
        adapters = Adapters(self.settings.scale, {name: (x.shape, "float32") for name, x in factors.items()})
        return adapters.merged_readers(readers, {name: _InMemory(x) for name, x in factors.items()})

    def identity(self) -> str:
        """Hex digest of the settings and of the tensors' file."""
        file = next(iter(self.tensors.values())).file
        stored = (self.settings.model_dump_json(), str(file.path), file.size, file.modified, file.inode)
        return hashlib.sha256(repr(stored).encode()).hexdigest()

    def _misshapen(self, entry: Entry) -> Iterator[str]:
        outputs, inputs = entry.their_shape
        for side, shape in (("A", (self.settings.rank, inputs)), ("B", (outputs, self.settings.rank))):
            tensor = self.tensors[_module(entry), side]
            if tensor.shape != shape:
                yield f"{_module(entry)}.lora_{side}: is {list(tensor.shape)}; expected {list(shape)}"

    def _stacked(self, parts: list[Entry], side: str) -> np.ndarray:
        arrays = [self._ours(entry, side) for entry in parts]
        return arrays[0] if parts[0].period is None else np.stack(arrays)

    def _ours(self, entry: Entry, side: str) -> np.ndarray:
        theirs = self.tensors[_module(entry), side.upper()].read().astype(np.float32).T
        inputs, rank = _inputs(entry), self.settings.rank
        shape = (*entry.our_shape[:inputs], rank) if side == "a" else (rank, *entry.our_shape[inputs:])
        return np.ascontiguousarray(theirs.reshape(shape))


@dataclasses.dataclass(frozen=True)
class _InMemory:
    """Reader of an array."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __call__(self, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        return self.array[index].astype(dtype)

    def require_undamaged(self) -> None:
        """Nothing can be damaged in memory."""


def _read_settings(config: Mapping[str, Any], where: str) -> tuple[AdapterSettings, float]:
    """Settings and dropout. An unknown key with a value means something that we would leave out."""
    if config.get("peft_type") != "LORA":
        raise InputError(f"{where}: peft_type {config.get('peft_type')!r:.80}; expected 'LORA'")
    problems = [
        f"{key}: {value!r:.80} is not supported; expected it to be absent"
        for key, value in config.items()
        if key not in _FREE and value not in (None, False, {}, [], "none")
        and not (key == "loftq_config" or key == "qalora_group_size")  # read only with what is refused
    ]  # fmt: skip
    if config.get("init_lora_weights") not in _INITIAL:
        problems.append(f"init_lora_weights: {config['init_lora_weights']!r:.80} may have changed the base model")
    dropout = config.get("lora_dropout") or 0.0
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout: expected a number from 0 to below 1, found {dropout!r:.80}")
    try:
        if isinstance(alpha := config.get("lora_alpha"), bool) or not isinstance(alpha, int | float):
            raise ValueError
        rslora = bool(config.get("use_rslora"))
        settings = AdapterSettings(rank=config.get("r"), alpha=float(alpha), rslora=rslora)  # pyright: ignore
    except (ValueError, OverflowError, pydantic.ValidationError):
        found = f"r: {config.get('r')!r:.40}, lora_alpha: {config.get('lora_alpha')!r:.40}"
        raise InputError(f"{where}: {found}; expected a whole number of 1 or more and a positive number") from None
    if problems:
        raise InputError(f"{where}: {listed(problems)}")
    return settings, float(dropout)


def _factors(path: pathlib.Path, rank: int) -> dict[tuple[str, str], Stored]:
    found, problems = {}, []
    for name, tensor in read_header(path).items():
        match = _FACTOR.fullmatch(name)
        if match is None or tensor.type not in ("F32", "F16", "BF16") or len(tensor.shape) != 2:
            problems.append(f"{name}: {tensor.type} {list(tensor.shape)} is no factor of a linear module's adapter")
            continue
        key = match[1].removeprefix(TEXT_PREFIX), match[2]
        if key in found:
            problems.append(f"{name}: is there twice, with and without {TEXT_PREFIX}")
        found[key] = tensor
    modules = {module for module, _ in found}
    problems += [f"{m}: lora_{side} is missing" for m in sorted(modules) for side in "AB" if (m, side) not in found]
    if problems or not found:
        raise InputError(f"{path}: {listed(problems or ['holds no adapters'])}")
    return found


# ---- names ---------------------------------------------------------------------------------------------------------


def _linear_entries(config: ModelConfig) -> list[Entry]:
    """The matrices that are linear modules, in their order in the model."""
    beyond = {name for found in extensions.names_of(config).values() for name in found}
    own = [
        p for p in parameters.of_model(config) if p.name not in beyond and not p.name.endswith(parameters.ROUTER_BIAS)
    ]
    entries = huggingface_names.table({p.name: p.full_shape for p in own})
    return [entry for entry in entries if isinstance(entry.layout, Linear)]


def _part_of_pictures(module: str) -> str | None:
    """The role of a matrix that only pictures pass through, by its module's name; None for others."""
    starts = {"vision_model.model.": "vision", "vision_model.vision_adapter.": "adapter",
              "multi_modal_projector.": "projector"}  # fmt: skip
    return next((role for start, role in starts.items() if module.startswith(start)), None)


def _module(entry: Entry) -> str:
    """The module's name, in the text model without its prefix."""
    return entry.theirs.removeprefix(TEXT_PREFIX).removesuffix(_WEIGHT)


def _inputs(entry: Entry) -> int:
    assert isinstance(entry.layout, Linear)
    return entry.layout.inputs


def _target_modules(adapted: set[str], every: Iterable[str]) -> list[str]:
    """The shortest ends of names that mean these modules and no others of the model, as PEFT matches them."""
    every = set(every)
    for length in (1, 2):
        ends = {".".join(name.split(".")[-length:]) for name in adapted}
        if {name for name in every if any(name == end or name.endswith(f".{end}") for end in ends)} == adapted:
            return sorted(ends)
    return sorted(adapted)


# ---- writing -------------------------------------------------------------------------------------------------------


def write_adapter(
    path: str | pathlib.Path,
    config: ModelConfig,
    settings: Mapping[str, Any],
    factors: Mapping[str, tuple[Reader, str]],
    *,
    base: str | None = None,
    tokenizer: Tokenizer | None = None,
    dialect: str | None = None,
) -> None:
    """Write the new folder `path` with a checkpoint's adapters, in the dtype of the factors.

    settings: rank, alpha, rslora and dropout, as a checkpoint records them. factors: A and B and their dtypes, by
    `factor_names`. base: the name or path of the base model, for PEFT. Raises InputError for adapters of routed
    experts, and before `path` appears for a damaged checkpoint.
    """
    path = pathlib.Path(path)
    adapted = sorted({name.rpartition("/")[0] for name in factors})
    linear = _linear_entries(config)
    if other := [name for name in adapted if name not in {entry.ours for entry in linear}]:
        raise InputError(
            f"{other[0]}: adapters of routed experts have no stable form in PEFT; export the merged model, or train "
            "with trainable.lora.targets without experts"
        )
    entries = [entry for entry in linear if entry.ours in adapted]
    plan = [planned for entry in entries for planned in _plan(entry, factors, settings["rank"])]
    every = [entry.theirs.removesuffix(_WEIGHT) for entry in linear]
    modules = {entry.theirs.removesuffix(_WEIGHT) for entry in entries}
    with new_folder(path) as aside:
        write_json(aside / CONFIG_FILE, _config_json(settings, base, _target_modules(modules, every)))
        write_tensors(aside, plan, float("inf"), 0)
        (aside / SINGLE_FILE).rename(aside / TENSORS_FILE)
        require_undamaged({name: reader for name, (reader, _) in factors.items()})
        if tokenizer is not None:
            write_hugging_face(tokenizer, aside, dialect)
    log.info("wrote %s: a PEFT adapter of %d matrices, rank %d", path, len(entries), settings["rank"])


def _plan(entry: Entry, factors: Mapping[str, tuple[Reader, str]], rank: int) -> Iterator[Planned]:
    outputs, inputs = entry.their_shape
    for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
        reader, dtype = factors[f"{entry.ours}/{side.lower()}"]
        header = TensorHeader(f"{_BASE}{entry.theirs.removesuffix(_WEIGHT)}.lora_{side}{_WEIGHT}", _TYPES[dtype], shape)

        def made(reader=reader, header=header, dtype=dtype) -> list[tuple[str, np.ndarray]]:
            lead = () if entry.period is None else (slice(entry.period, entry.period + 1),)
            part = reader((*lead, *(slice(0, n) for n in reader.shape[len(lead) :])), jnp.dtype(dtype))
            return [(header.name, np.ascontiguousarray(part.reshape(header.shape[::-1]).T))]

        yield Planned((header,), lambda made=made: iter([made]))


def _config_json(settings: Mapping[str, Any], base: str | None, target_modules: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": settings.get("dropout", 0.0),
        "use_rslora": settings.get("rslora", False),
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }

"""Read weights in 8-bit floating point, as the compressed-tensors library stores them ("float-quantized").

Each quantized `<module>.weight` (F8_E4M3, `[out, in]`) comes with a `<module>.weight_scale`: `[out, 1]`, one number per
output channel, or a single number. The weight is their product. The rounding of activations in `config.json` is
ignored: we compute with the dequantized weights. The tensors' types show which of them are quantized, so the patterns
under `ignore` in `config.json` are not needed, and patterns from a file are never evaluated.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maverick_jax.huggingface.safetensors_reader import Stored

QUANTIZED = "F8_E4M3"
SCALE_TYPES = ("BF16", "F16", "F32")
_WEIGHTS = {
    "num_bits": (8,),
    "type": ("float",),
    "symmetric": (True,),
    "strategy": ("channel", "tensor"),
    "dynamic": (False, None),
    "group_size": (None,),
    "block_structure": (None,),
    "actorder": (None, False),
}
_CONFIG = {
    "quant_method": ("compressed-tensors",),
    "format": ("float-quantized",),
    "quantization_status": ("compressed", "frozen", None),
    "kv_cache_scheme": (None,),
    "sparsity_config": (None, {}),
    "transform_config": (None, {}),
}
"""Supported values of each key; an absent key counts as None."""


def scale_name(weight: str) -> str:
    return weight + "_scale"


def problems(config: Any) -> list[str]:
    """Reasons why weights with this `quantization_config` cannot be read; empty if they can, or if it is None."""
    if config is None:
        return []
    if not isinstance(config, Mapping):
        return [f"quantization_config: expected a mapping, found {type(config).__name__}"]
    found = _unlike(config, _CONFIG, "quantization_config")
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return [*found, "quantization_config.config_groups: expected a mapping of groups"]
    for name, group in groups.items():
        where = f"quantization_config.config_groups.{name:.40}"
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            found.append(f"{where}.weights: expected a mapping")
            continue
        found += _unlike(weights, _WEIGHTS, f"{where}.weights")
        inputs = group.get("input_activations")
        if inputs is not None and (not isinstance(inputs, Mapping) or inputs.get("dynamic") is not True):
            found.append(f"{where}.input_activations: only scales computed at run time (dynamic: true) are supported")
        if group.get("output_activations") is not None:
            found.append(f"{where}.output_activations: expected null")
    return found


def _unlike(given: Mapping[str, Any], expected: Mapping[str, tuple], where: str) -> list[str]:
    # Types are compared too, since true is not 1 in JSON.
    wrong = [key for key, values in expected.items() if not any(_same(given.get(key), value) for value in values)]
    return [
        f"{where}.{key}: {given.get(key)!r:.80} is not supported; expected {' or '.join(map(repr, expected[key]))}"
        for key in wrong
    ]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def scale_problem(weight: Stored, scale: Stored) -> str | None:
    """Why `scale` cannot be the scale of `weight`; None if it can."""
    channels = weight.shape[0]
    if scale.shape not in ((channels, 1), (channels,), (1, 1), (1,), ()):
        return f"is {list(scale.shape)}; expected {[channels, 1]} or a single number"
    if scale.type not in SCALE_TYPES:
        return f"is {scale.type}; expected one of {', '.join(SCALE_TYPES)}"
    return None


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """A quantized tensor, read as float32. The product is exact, since its factors have few bits."""

    stored: Stored
    scale: Stored

    def read(self, index: Sequence[slice], shape: Sequence[int]) -> np.ndarray:
        """The part `index` of the tensor, viewed with `shape`, whose leading axes are the output channels. float32."""
        scale = self.scale.read().astype(np.float32).reshape(-1)
        lead = next(axes for axes in range(len(shape) + 1) if math.prod(shape[:axes]) == scale.size)
        scale = scale.reshape(shape[:lead])[tuple(index[:lead])]
        part = self.stored.read(index, shape).astype(np.float32)
        part *= scale.reshape(*scale.shape, *[1] * (len(shape) - lead))
        return part

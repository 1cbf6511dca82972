"""Quantize weights to int8 or int4: symmetric, one scale per group of inputs, in the `pack-quantized` format.

The format is that of the compressed-tensors library (0.20), which vLLM and transformers read. A linear weight [out, in]
becomes `weight_packed` int32[out, in * bits / 32] (each value plus 2^(bits-1), the first in the lowest bits),
`weight_scale` [out, in / group] and `weight_shape` int64[2]. A weight is scale * value, in the scale's dtype. Each
routed expert is stored as separate linear layers, as in the public FP8 folders.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from maverick_jax.checkpoint.readers import Reader
from maverick_jax.errors import InputError
from maverick_jax.huggingface import tensor_blocks
from maverick_jax.huggingface.names import Entry
from maverick_jax.huggingface.safetensors_writer import Made, Planned, TensorHeader
from maverick_jax.huggingface.tensor_blocks import View
from maverick_jax.settings.section import did_you_mean
from maverick_jax.stack import name_in_layer

BITS = {"int8": 8, "int4": 4}
GROUP_SIZES = (32, 64, 128)
"""Group sizes for which vLLM has kernels."""
IGNORED = ["lm_head", "self_attn", "router", "vision_model", "multi_modal_projector"]
"""Parts of the names of linear layers that are not quantized: they are comparatively small, and sensitive."""

_FEED_FORWARD = re.compile(r"(mlp|moe/shared)/(gate|up|down)")
_EXPERTS = re.compile(r"moe/experts_(in|out)")
"""Names of parameters in their layer."""


@dataclasses.dataclass(frozen=True)
class Quantization:
    """int8 or int4 with one scale per `group_size` inputs. Raises InputError for unsupported values."""

    kind: str
    group_size: int = 128

    def __post_init__(self):
        if self.kind not in BITS:
            raise InputError(f"quantize: {self.kind!r}; expected {' or '.join(BITS)}{did_you_mean(self.kind, BITS)}")
        if self.group_size not in GROUP_SIZES:
            raise InputError(f"group_size: {self.group_size}; expected one of {', '.join(map(str, GROUP_SIZES))}")

    @property
    def bits(self) -> int:
        return BITS[self.kind]

    def config_json(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        weights = {"num_bits": self.bits, "type": "int", "symmetric": True, "strategy": "group"}
        weights |= {"group_size": self.group_size, "dynamic": False, "actorder": None}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [f"re:.*{part}.*" for part in IGNORED],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }

    def require_fits(self, views: list[View]) -> None:
        """Raises InputError unless `group_size` divides the inputs of every tensor in `views`."""
        for view in views:
            if view.shape[1] % self.group_size:
                raise InputError(
                    f"group_size: {self.group_size} does not divide the {view.shape[1]} inputs of {view.name}; "
                    f"expected one of {', '.join(map(str, GROUP_SIZES))} that does"
                )

    def plan(self, view: View, reader: Reader, scale_type: str, scale_dtype: np.dtype) -> Planned:
        """The three tensors that store `view` quantized, computed block by block."""
        out, inputs = view.shape
        packed = TensorHeader(f"{view.name}_packed", "I32", (out, inputs * self.bits // 32))
        scale = TensorHeader(f"{view.name}_scale", scale_type, (out, inputs // self.group_size))
        shape = TensorHeader(f"{view.name}_shape", "I64", (2,))

        def quantized(block: Callable[[], np.ndarray]) -> Made:
            values, scales = quantize(block().reshape(-1, inputs), self.bits, self.group_size, scale_dtype)
            return [(packed.name, pack(values, self.bits)), (scale.name, scales)]

        def parts() -> Iterator[Callable[[], Made]]:
            yield lambda: [(shape.name, np.array(view.shape, np.int64))]
            for block in view.blocks(reader, np.dtype(np.float32), tensor_blocks.BLOCK_BYTES):
                yield functools.partial(quantized, block)

        return Planned((packed, scale, shape), parts)


def quantized_views(entry: Entry, shape: tuple[int, ...]) -> list[View]:
    """The linear layers into which `entry` is quantized: itself, or one per expert; empty if it is not quantized.

    `shape`: shape of our whole parameter.
    """
    name = name_in_layer(entry.ours) or ""
    if _FEED_FORWARD.fullmatch(name):
        return [View.of(entry)]
    return View.of(entry).experts(shape) if _EXPERTS.fullmatch(name) else []


def quantize(x: np.ndarray, bits: int, group_size: int, scale_dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """float32[R, C] -> (int8[R, C], scale_dtype[R, C / group_size]), rounded to nearest, ties to even."""
    groups = x.reshape(len(x), -1, group_size)
    most = np.maximum(groups.max(-1), -groups.min(-1))
    scale = (most / np.float32((2**bits - 1) / 2)).astype(scale_dtype)
    inverse = np.float32(1) / np.maximum(scale.astype(np.float32), np.finfo(np.float32).tiny)
    values = np.rint(groups * inverse[..., None])
    return np.clip(values, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8).reshape(x.shape), scale


def dequantize(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The weights that the integers represent, in the scale's dtype, rounded once."""
    groups = values.reshape(*scale.shape, -1).astype(np.float32) * scale.astype(np.float32)[..., None]
    return groups.astype(scale.dtype).reshape(values.shape)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """int8[R, C] -> int32[R, C * bits / 32], for 4 or 8 bits."""
    unsigned = values.view(np.uint8) + np.uint8(2 ** (bits - 1))
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(unsigned).view("<i4")


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `pack`."""
    unsigned = packed.view(np.uint8)
    if bits == 4:
        unsigned = np.stack([unsigned & np.uint8(15), unsigned >> np.uint8(4)], -1).reshape(len(packed), -1)
    return (unsigned - np.uint8(2 ** (bits - 1))).view(np.int8)

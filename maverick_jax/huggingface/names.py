"""Which Hugging Face tensor each of our parameters is, and how the two layouts relate.

One table, read in both directions. Ours are `[in..., out...]` with heads kept apart and the layers of a period
stacked; theirs are one tensor a layer, linear weights `[out, in]`, routed experts `[expert, in, out]` with gate and up
side by side on the last axis. Every relation is a transpose and a reshape, so on a memory-mapped file it is a view.
Source of the names and shapes: the state dicts of `Llama4ForCausalLM` and `Llama4ForConditionalGeneration` in
transformers 5.23; the second's text tensors carry the prefix `language_model.`
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.stack import PERIODS, Stack


class TensorLayout(Protocol):
    """How one parameter of one layer is arranged in either world."""

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Their shape, from ours."""
        ...

    def axes(self, rank: int) -> tuple[int, ...]:
        """Our axes (of `rank`) in the order in which theirs is made of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """Ours `[in..., out...]` with `inputs` leading input axes; theirs `[out, in]`, the axes of each side merged."""

    inputs: int

    def shape(self, ours):
        return (math.prod(ours[self.inputs :]), math.prod(ours[: self.inputs]))

    def axes(self, rank):
        return (*range(self.inputs, rank), *range(self.inputs))


@dataclasses.dataclass(frozen=True)
class Same:
    """The same axes in the same order on both sides; theirs merges the last `merged` axes of ours into one."""

    merged: int = 1

    def shape(self, ours):
        cut = len(ours) - self.merged
        return (*ours[:cut], math.prod(ours[cut:]))

    def axes(self, rank):
        return tuple(range(rank))


WHOLE_MODEL: dict[str, tuple[str, TensorLayout]] = {
    "embed": ("model.embed_tokens.weight", Same()),
    "norm": ("model.norm.weight", Same()),
    "head": ("lm_head.weight", Linear(1)),
}

PER_LAYER: dict[str, tuple[str, TensorLayout]] = {
    "attention_norm": ("input_layernorm.weight", Same()),
    "mlp_norm": ("post_attention_layernorm.weight", Same()),
    "attention/q": ("self_attn.q_proj.weight", Linear(1)),
    "attention/k": ("self_attn.k_proj.weight", Linear(1)),
    "attention/v": ("self_attn.v_proj.weight", Linear(1)),
    "attention/o": ("self_attn.o_proj.weight", Linear(2)),
    "mlp/gate": ("feed_forward.gate_proj.weight", Linear(1)),
    "mlp/up": ("feed_forward.up_proj.weight", Linear(1)),
    "mlp/down": ("feed_forward.down_proj.weight", Linear(1)),
    "moe/router": ("feed_forward.router.weight", Linear(1)),
    "moe/experts_in": ("feed_forward.experts.gate_up_proj", Same(merged=2)),
    "moe/experts_out": ("feed_forward.experts.down_proj", Same()),
    "moe/shared/gate": ("feed_forward.shared_expert.gate_proj.weight", Linear(1)),
    "moe/shared/up": ("feed_forward.shared_expert.up_proj.weight", Linear(1)),
    "moe/shared/down": ("feed_forward.shared_expert.down_proj.weight", Linear(1)),
}

VISION: dict[str, tuple[str, TensorLayout]] = {
    "patch": ("vision_model.patch_embedding.linear.weight", Linear(1)),
    "class_embedding": ("vision_model.class_embedding", Same()),
    "positions": ("vision_model.positional_embedding_vlm", Same()),
    "norm_pre/scale": ("vision_model.layernorm_pre.weight", Same()),
    "norm_pre/bias": ("vision_model.layernorm_pre.bias", Same()),
    "norm_post/scale": ("vision_model.layernorm_post.weight", Same()),
    "norm_post/bias": ("vision_model.layernorm_post.bias", Same()),
    "adapter_in": ("vision_model.vision_adapter.mlp.fc1.weight", Linear(1)),
    "adapter_out": ("vision_model.vision_adapter.mlp.fc2.weight", Linear(1)),
    "projector": ("multi_modal_projector.linear_1.weight", Linear(1)),
}

PER_VISION_LAYER: dict[str, tuple[str, TensorLayout]] = {
    "attention_norm/scale": ("input_layernorm.weight", Same()),
    "attention_norm/bias": ("input_layernorm.bias", Same()),
    "mlp_norm/scale": ("post_attention_layernorm.weight", Same()),
    "mlp_norm/bias": ("post_attention_layernorm.bias", Same()),
    **{part: (f"self_attn.{part}_proj.weight", Linear(1)) for part in "qkv"},
    **{f"{part}_bias": (f"self_attn.{part}_proj.bias", Same(merged=2)) for part in "qkv"},
    "o": ("self_attn.o_proj.weight", Linear(2)),
    "o_bias": ("self_attn.o_proj.bias", Same()),
    "fc1": ("mlp.fc1.weight", Linear(1)),
    "fc1_bias": ("mlp.fc1.bias", Same()),
    "fc2": ("mlp.fc2.weight", Linear(1)),
    "fc2_bias": ("mlp.fc2.bias", Same()),
}

TEXT_PREFIX = "language_model."
"""Of text tensors in a folder that also holds the image encoder."""

VISION_PREFIX = "vision/"
"""Of our parameters of the image encoder."""
_VISION_LAYERS = "vision/layers/"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One Hugging Face tensor and the place of its numbers in our parameters."""

    theirs: str
    """Its name in the folder, e.g. `model.layers.3.self_attn.q_proj.weight`."""
    their_shape: tuple[int, ...]
    ours: str
    """Path of our parameter, e.g. `periods/layer_3/attention/q`."""
    our_shape: tuple[int, ...]
    """Shape of one layer's part of it: without the axis that stacks layers."""
    period: int | None
    """Index along the axis that stacks periods, or layers of the image encoder; None where there is no such axis."""
    layout: TensorLayout

    def export(self, parameter: Any, dtype: np.dtype) -> np.ndarray:
        """Their tensor, contiguous, from our whole parameter (NumPy or JAX array); rounds to nearest even."""
        part = np.asarray(parameter if self.period is None else parameter[self.period])
        theirs = part.transpose(self.layout.axes(part.ndim)).reshape(self.their_shape)
        return np.ascontiguousarray(theirs.astype(dtype))


def table(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """The Hugging Face tensors that hold the parameters of a model, in the order of a forward pass.

    `shapes`: shape of each of our parameters by its path (`periods/layer_0/attention/q`, ...).
    Raises InputError for a parameter that Llama 4 does not have.
    """
    vision = [
        entry for name, shape in shapes.items() if name.startswith(VISION_PREFIX) for entry in _vision(name, shape)
    ]
    text = _text({name: shape for name, shape in shapes.items() if not name.startswith(VISION_PREFIX)})
    if vision:
        text = [dataclasses.replace(entry, theirs=TEXT_PREFIX + entry.theirs) for entry in text]
    return vision + text


def _vision(name: str, shape: tuple[int, ...]) -> list[Entry]:
    """The tensors of one parameter of the image encoder."""
    if not name.startswith(_VISION_LAYERS):
        theirs, layout = _lookup(VISION, name.removeprefix(VISION_PREFIX), name)
        return [Entry(theirs, layout.shape(shape), name, shape, None, layout)]
    suffix, layout = _lookup(PER_VISION_LAYER, name.removeprefix(_VISION_LAYERS), name)
    theirs = [f"vision_model.model.layers.{j}.{suffix}" for j in range(shape[0])]
    return [Entry(t, layout.shape(shape[1:]), name, shape[1:], j, layout) for j, t in enumerate(theirs)]


def _text(shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """The tensors of the text model, under their names in a text-only folder."""
    depth = {shape[0] for name, shape in shapes.items() if name.startswith(f"{PERIODS}/layer_")}
    if len(depth) > 1:
        raise InputError(f"parameters under periods/ disagree on the number of periods: {sorted(depth)}")
    stack = Stack.of_names(shapes, depth.pop() if depth else 0)

    entries: list[tuple[float, Entry]] = []
    for name, shape in shapes.items():
        if (found := stack.find(name)) is None:
            theirs, layout = _lookup(WHOLE_MODEL, name, name)
            order = -1 if name == "embed" else math.inf
            entries.append((order, Entry(theirs, layout.shape(shape), name, shape, None, layout)))
            continue
        slot, rest = found
        suffix, layout = _lookup(PER_LAYER, rest, name)
        ours = shape[1:] if slot.stacked else shape
        for p, layer in enumerate(slot.layers):
            theirs, index = f"model.layers.{layer}.{suffix}", p if slot.stacked else None
            entries.append((layer, Entry(theirs, layout.shape(ours), name, ours, index, layout)))
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


def _lookup(part: dict[str, tuple[str, TensorLayout]], key: str, name: str) -> tuple[str, TensorLayout]:
    if key not in part:
        raise InputError(f"parameter {name!r} has no Hugging Face Llama 4 counterpart{did_you_mean(key, part)}")
    return part[key]

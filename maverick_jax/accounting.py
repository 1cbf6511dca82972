"""What a model costs, in closed form: parameters, bytes per device, FLOPs per token, bytes on the wire.

Nothing is built or compiled. `tests/launch/test_plan.py` holds the shapes against the real model's.
FLOPs are counted as in published Llama 4 figures: 6 per active parameter of a matrix product (the head's too, the
embedding's lookup not) plus attention scores, for the keys that the mask lets through and no others. What the
backward pass recomputes is not counted.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

from maverick_jax.config import LayerSpec, ModelConfig
from maverick_jax.ops.cross_entropy import LOGITS_PER_CHUNK
from maverick_jax.sharding import BATCH_AXES, EXPERT_AXIS, TENSOR_AXIS, ShardingRules, axes_tuple, size_of

BYTES = {"float32": 4, "bfloat16": 2}
COMPILER_SHARE = 0.5
"""Temporary memory beyond the closed form, as a share of it. Steps of Maverick's shape compiled ahead of time for 512
H200 took 1.4 to 1.7 times the closed form (25, 29 and 185 GiB in all with remat full, attention and none)."""


# ---- devices ---------------------------------------------------------------------------------------------------------

Hardware = Literal["a100_40", "a100_80", "h100", "h200", "b200", "v5e", "v5p", "v6e"]


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator, from its vendor's data sheet."""

    memory_gb: float
    """10^9 bytes."""
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    kinds: tuple[str, ...]
    """What JAX's `device_kind` contains, lower case."""


DEVICES: dict[str, Device] = {
    "a100_40": Device(40, 312e12, ("a100-sxm4-40gb", "a100-pcie-40gb")),
    "a100_80": Device(80, 312e12, ("a100",)),
    "h100": Device(80, 989.4e12, ("h100",)),
    "h200": Device(141, 989.4e12, ("h200",)),
    "b200": Device(180, 2250e12, ("b200",)),
    "v5e": Device(16, 197e12, ("tpu v5 lite", "tpu v5e")),
    "v5p": Device(95, 459e12, ("tpu v5",)),
    "v6e": Device(32, 918e12, ("tpu v6",)),
}


def device_of(kind: str) -> Device | None:
    """The entry for a JAX `device_kind`; None for one that is not in the table (a CPU)."""
    matches = (device for device in DEVICES.values() if any(k in kind.lower() for k in device.kinds))
    return next(matches, None)


# ---- parameters ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One array of the model, without the axis that stacks it over periods."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical axis per dimension."""
    copies: int = 1
    """Layers that have one."""

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.copies

    @property
    def routed(self) -> bool:
        return "experts" in self.axes

    def parts(self, rules: ShardingRules, sizes: dict[str, int]) -> int:
        """Into how many parts it is stored."""
        return math.prod(size_of(sizes, getattr(rules, axis)) for axis in self.axes if axis)

    def gather(self, rules: ShardingRules, sizes: dict[str, int]) -> int:
        """How many devices it is gathered from before use; 1: it is used as it is stored."""
        gathered = [axis for axis in self.axes if axis in rules.GATHERED]
        return math.prod(size_of(sizes, getattr(rules, axis)) for axis in gathered if axis)


def parameters(config: ModelConfig) -> list[Parameter]:
    """Every parameter; their `size`s add up to `config.num_parameters()`."""
    V, D = config.vocab_size, config.hidden_size
    layers: dict[LayerSpec, int] = {}
    for spec in config.layers:
        kind = LayerSpec(moe=spec.moe, rope=True)
        layers[kind] = layers.get(kind, 0) + 1
    found = [Parameter("embed", (V, D), (None, "table")), Parameter("norm", (D,), (None,))]
    for spec, copies in layers.items():
        found += [dataclasses.replace(p, copies=copies) for p in layer_parameters(config, spec)]
    return [*found, Parameter("head", (D, V), ("embed", "vocab")), *vision_parameters(config)]


def layer_parameters(config: ModelConfig, spec: LayerSpec) -> list[Parameter]:
    """The parameters of one layer."""
    D, N, K, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    E, F = config.num_local_experts, config.intermediate_size
    found = [
        Parameter("attention_norm", (D,), (None,)),
        Parameter("attention/q", (D, N, H), ("embed", "heads", None)),
        Parameter("attention/k", (D, K, H), ("embed", "kv_heads", None)),
        Parameter("attention/v", (D, K, H), ("embed", "kv_heads", None)),
        Parameter("attention/o", (N, H, D), ("heads", None, "embed")),
        Parameter("mlp_norm", (D,), (None,)),
    ]
    if not spec.moe:
        return found + _mlp("mlp", D, config.intermediate_size_mlp)
    found += [
        Parameter("moe/router", (D, E), (None, None)),
        Parameter("moe/experts_in", (E, D, 2, F), ("experts", "expert_embed", None, "expert_mlp")),
        Parameter("moe/experts_out", (E, F, D), ("experts", "expert_mlp", "expert_embed")),
        *_mlp("moe/shared", D, F),
    ]
    if config.balance.kind == "loss_free_bias":
        found.append(Parameter("moe/router_bias", (E,), (None,)))
    return found


def _mlp(name: str, D: int, F: int) -> list[Parameter]:
    return [
        Parameter(f"{name}/gate", (D, F), ("embed", "mlp")),
        Parameter(f"{name}/up", (D, F), ("embed", "mlp")),
        Parameter(f"{name}/down", (F, D), ("mlp", "embed")),
    ]


def vision_parameters(config: ModelConfig) -> list[Parameter]:
    """The image encoder's; none for a text model."""
    if (vision := config.vision) is None:
        return []
    W, N, H, F, A = (
        *(vision.hidden_size, vision.num_attention_heads, vision.head_dim),
        *(vision.intermediate_size, vision.vision_output_dim),
    )
    wide, small = ("vision_embed", "mlp"), (None,)
    layer = [Parameter(f"{norm}/{part}", (W,), small) for norm in ("attention_norm", "mlp_norm") for part in _AFFINE]
    layer += [Parameter(name, (W, N, H), ("vision_embed", "heads", None)) for name in "qkv"]
    layer += [Parameter(f"{name}_bias", (N, H), ("heads", None)) for name in "qkv"]
    layer += [Parameter("o", (N, H, W), ("heads", None, "vision_embed")), Parameter("o_bias", (W,), small)]
    layer += [Parameter("fc1", (W, F), wide), Parameter("fc1_bias", (F,), ("mlp",))]
    layer += [Parameter("fc2", (F, W), wide[::-1]), Parameter("fc2_bias", (W,), small)]
    layers = [dataclasses.replace(p, name=f"layers/{p.name}", copies=vision.num_hidden_layers) for p in layer]
    found = [
        Parameter("patch", (vision.num_channels * vision.patch_size**2, W), (None, "vision_embed")),
        Parameter("class_embedding", (W,), small),
        Parameter("positions", (vision.grid**2 + 1, W), (None, None)),
        *[Parameter(f"{norm}/{part}", (W,), small) for norm in ("norm_pre", "norm_post") for part in _AFFINE],
        *layers,
        Parameter("adapter_in", (F, A), wide),
        Parameter("adapter_out", (A, A), wide[::-1]),
        Parameter("projector", (A, config.hidden_size), (None, "vision_embed")),
    ]
    return [dataclasses.replace(p, name=f"vision/{p.name}") for p in found]


_AFFINE = ("scale", "bias")


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


def attended_keys(config: ModelConfig, spec: LayerSpec, sequence_length: int) -> int:
    """Query-key pairs that the mask of a layer lets through in one sequence that is one document."""
    T, reach = sequence_length, config.attention_chunk_size
    if not spec.rope or reach is None or reach >= T:
        return T * (T + 1) // 2
    if config.local_attention == "sliding_window":
        return reach * (reach + 1) // 2 + (T - reach) * reach
    rest = T % reach
    return (T // reach) * (reach * (reach + 1) // 2) + rest * (rest + 1) // 2


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """FLOPs of forward and backward per token, by part, in sequences of `sequence_length` tokens.

    The forward pass alone is a third of it.
    """
    moe = config.num_moe_layers
    dense = config.num_hidden_layers - moe
    pairs = sum(attended_keys(config, spec, sequence_length) for spec in config.layers)
    return {
        "attention_projections": 6.0 * config.num_hidden_layers * config.attention_parameters,
        "attention_scores": 12.0 * config.num_attention_heads * config.head_dim * pairs / sequence_length,
        "dense": 18.0 * dense * config.hidden_size * config.intermediate_size_mlp,
        "shared_experts": 6.0 * moe * config.expert_parameters,
        "routed_experts": 6.0 * moe * config.num_experts_per_tok * config.expert_parameters,
        "router": 6.0 * moe * config.hidden_size * config.num_local_experts,
        "head": 6.0 * config.hidden_size * config.vocab_size,
    }


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one token's forward and backward pass."""
    return sum(flops_per_token(config, sequence_length).values())


# ---- one device's share ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a train step is spread over devices."""

    rules: ShardingRules
    sizes: dict[str, int]
    """Devices per mesh axis."""
    batch_size: int
    """Sequences per optimizer step, whole job."""
    sequence_length: int
    accumulation_steps: int = 1
    loss_chunk: int | None = None
    """Tokens per device whose logits exist at a time; None: the loss's own choice."""

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def tokens(self) -> int:
        """Tokens that one device holds in one forward pass."""
        split = size_of(self.sizes, self.rules.batch) * size_of(self.sizes, self.rules.length)
        return math.ceil(self.batch_size * self.sequence_length / (self.accumulation_steps * split))

    def ways(self, logical: str) -> int:
        return size_of(self.sizes, getattr(self.rules, logical))


def memory(
    config: ModelConfig,
    layout: Layout,
    *,
    optimizer_bytes_per_parameter: int = 8,
    trained: Iterable[Parameter] | None = None,
) -> dict[str, int]:
    """Bytes per device at the worst moment of a step, by what they hold. What is not `trained` (None: all is) has
    neither gradients nor moments.

    Weights, optimizer moments and gradients are exact. Activations and the working set are what layers must keep by
    `config.remat`; compilers keep more, for which `compiler` allows.
    """
    trained_size = elements(parameters(config) if trained is None else trained, layout)
    param = BYTES[config.param_dtype]
    buffers = 2 if layout.accumulation_steps > 1 else 1
    per_layer = [_activation_bytes(config, spec, layout) for spec in config.layers]
    whole = [_activation_bytes(config, spec, layout, remat="none") for spec in config.layers]
    recomputed = 0 if config.remat == "none" else max(whole)
    working_set = recomputed + _gathered_bytes(config, layout) + _loss_bytes(config, layout)
    return {
        "weights": weight_bytes(config, layout),
        "optimizer": trained_size * optimizer_bytes_per_parameter,
        "gradients": trained_size * param * buffers,
        "activations": sum(per_layer),
        "working_set": working_set,
        "compiler": int(COMPILER_SHARE * (sum(per_layer) + working_set)),
    }


def weight_bytes(config: ModelConfig, layout: Layout) -> int:
    """Of the parameters that one device stores."""
    return elements(parameters(config), layout) * BYTES[config.param_dtype]


def elements(found: Iterable[Parameter], layout: Layout) -> int:
    """Of these parameters, on one device."""
    return sum(p.size // p.parts(layout.rules, layout.sizes) for p in found)


def used_elements(found: Iterable[Parameter], layout: Layout) -> int:
    """Of these parameters in the form they are multiplied in, on one device."""
    rules, sizes = layout.rules, layout.sizes
    return sum(p.size * p.gather(rules, sizes) // p.parts(rules, sizes) for p in found)


def _activation_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout, remat: str | None = None) -> int:
    """What the forward pass of one layer leaves for its backward pass on one device.

    Always the residual stream at the layer's input; then, by policy, attention's output, or every matrix product's
    result, or everything: norms with their float32 inputs, heads rotated in float32, hidden units before and after
    their activation, rows on their way to and from the experts. Attention scores never: they are fused or blocked.
    """
    remat = remat or config.remat
    D, H = config.hidden_size, config.head_dim
    heads = config.num_attention_heads * H // layout.ways("heads")
    kv = config.num_key_value_heads * H // layout.ways("kv_heads")
    k = config.num_experts_per_tok
    if spec.moe:
        hidden = config.intermediate_size * (1 / layout.ways("mlp") + k / layout.ways("expert_mlp"))
        rows = k * D  # inputs or outputs of routed experts
    else:
        hidden, rows = config.intermediate_size_mlp / layout.ways("mlp"), 0
    elements = {
        "full": D,
        "attention": D + heads,
        "dots": D + heads + 2 * kv + heads + D + 2 * hidden + D + 2 * rows,
        "none": 2 * D + 2 * 3 * D + heads + 2 * kv + 2 * (heads + kv) + heads + D + 5 * hidden + 4 * rows + D,
    }[remat]
    return int(elements * layout.tokens * BYTES[config.compute_dtype])


def _gathered_bytes(config: ModelConfig, layout: Layout) -> int:
    """The largest layer's weights in the form they are multiplied in, and as much again for their gradients."""

    def whole(spec: LayerSpec) -> int:
        return used_elements(layer_parameters(config, spec), layout) * BYTES[config.compute_dtype]

    return 2 * max(whole(spec) for spec in set(config.layers))


def _loss_bytes(config: ModelConfig, layout: Layout) -> int:
    """A chunk's logits and their gradient in float32; final hidden states and head, gathered, with their gradients."""
    vocabulary = config.vocab_size // layout.ways("vocab")
    rows = min(layout.tokens, layout.loss_chunk or max(128, LOGITS_PER_CHUNK // vocabulary))
    whole = 2 * (layout.tokens + vocabulary) * config.hidden_size * BYTES[config.compute_dtype]
    return 2 * BYTES["float32"] * rows * vocabulary + whole


def communication(config: ModelConfig, layout: Layout) -> dict[str, int]:
    """Bytes that one device sends in one optimizer step, by kind of collective, for ring algorithms.

    `gather`: weights before use, forward and backward; `reduce_scatter`: gradients of the same; `all_reduce`:
    gradients of what is replicated, and partial sums of tensor parallelism; `all_to_all`: tokens to their experts
    and back, forward and backward, once more where the backward pass repeats the layer.
    """
    element, passes = BYTES[config.compute_dtype], layout.accumulation_steps
    gather = reduce_scatter = replicated = 0
    batch_ways = size_of(layout.sizes, BATCH_AXES)
    for p in [p for p in parameters(config) if not p.name.startswith("vision/")]:  # no batch of text reads those
        held = p.size // p.parts(layout.rules, layout.sizes)
        n = p.gather(layout.rules, layout.sizes)
        gather += 2 * passes * (n - 1) * held * element
        reduce_scatter += passes * (n - 1) * held * element
        spread = [a for axis in p.axes if axis for a in axes_tuple(getattr(layout.rules, axis)) if a in BATCH_AXES]
        copies = batch_ways // size_of(layout.sizes, tuple(spread))
        replicated += int(2 * passes * (copies - 1) / copies * held * BYTES[config.param_dtype])
    activation = layout.tokens * config.hidden_size * element * passes
    repeats = 3 if config.remat == "full" else 2
    experts, tensor = layout.sizes.get(EXPERT_AXIS, 1), layout.sizes.get(TENSOR_AXIS, 1)
    tokens_moved = 2 * repeats * config.num_moe_layers * config.num_experts_per_tok * activation
    partial_sums = 2 * repeats * config.num_hidden_layers * activation
    return {
        "gather": gather,
        "reduce_scatter": reduce_scatter,
        "all_reduce": replicated + 2 * partial_sums * (tensor - 1) // tensor,
        "all_to_all": tokens_moved * (experts - 1) // experts,
    }

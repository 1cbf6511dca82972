"""Every array of a model, declared once: its name, shape, logical axes, role and initial values.

Modules are built from these tables (`maverick_jax.param.build`); counts, plans, the selection of trained parameters,
adapters and checkpoints read the same tables. To add an array to a layer, add a line here and use the array in the
layer's module. Only its name in a Hugging Face folder is declared elsewhere (`maverick_jax.huggingface.names`).

Initial values are drawn in the order of a table.

V vocabulary, D model, N query heads, K key/value heads, H head dim, F hidden, E experts; in the image encoder W width,
A width of the adapter.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal, get_args

from maverick_jax.network import Dtype, LayerSpec, Network, VisionConfig
from maverick_jax.stack import PERIODS

Role = Literal[
    "router", "attention", "shared", "experts", "mlp", "norms", "embed", "head", "latent", "reasoning", "vision",
    "adapter", "projector",
]  # fmt: skip
"""The purpose of a parameter. `experts` are the routed experts, `shared` the shared experts, `mlp` the feed-forward
networks of dense layers, `head` the output matrix, `latent` the feedback of latent thoughts, `reasoning` the reasoning
heads, `vision` the image encoder; `adapter` and `projector` bring its features to the width of the text model."""

ROLES: tuple[Role, ...] = get_args(Role)
VISION_ROLES: tuple[Role, ...] = ("vision", "adapter", "projector")
"""Of the parameters that only pictures pass through."""
TEXT_ROLES: tuple[Role, ...] = tuple(role for role in ROLES if role not in VISION_ROLES)

Axes = tuple[str | None, ...]
"""Logical axis per dimension; see `maverick_jax.sharding.ShardingRules`."""

Init = Literal["normal", "residual", "ones", "zeros"]
"""`normal`: normal with standard deviation `initializer_range`; `residual`: the same divided by sqrt(2 x layers), for
weights that write to the residual stream; both times `maverick_jax.width.initial_factor`."""

ROUTER_BIAS = "router_bias"
"""Name of the loss-free balance bias in its module. It is float32, because its steps are as small as 0.001."""
LATENT_PREFIX = "latent/"
"""Of the parameters of latent thoughts."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration of one array."""

    name: str
    """Its name in its module, in the tables of modules; its whole path, in `of_model`."""
    shape: tuple[int, ...]
    """The shape in one layer, without the axis that stacks layers."""
    axes: Axes
    role: Role
    init: Init = "normal"
    dtype: Dtype | None = None
    """None: the config's `param_dtype`."""
    inputs: int = 1
    """Number of input axes of a weight; they come first, or after the axis of experts."""
    stacked: int | None = None
    """Length of the leading axis that stacks layers; None: no such axis."""

    @property
    def size(self) -> int:
        """Number of elements in all layers."""
        return math.prod(self.full_shape)

    @property
    def lead(self) -> tuple[int, ...]:
        """Shape of the axes before the axes of one layer."""
        return () if self.stacked is None else (self.stacked,)

    @property
    def in_stages(self) -> bool:
        """Whether stages of a pipeline divide its layers."""
        return self.name.startswith(f"{PERIODS}/")

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.lead + self.shape


Table = list[Parameter]


# ---- the text model --------------------------------------------------------------------------------------------------


def embedding(config: Network) -> Table:
    return [Parameter("embed", (config.vocab_size, config.hidden_size), (None, "table"), "embed")]


def loops(config: Network) -> Table:
    """The factor of the input of periods that are repeated."""
    return [Parameter("loop_gain", (config.hidden_size,), (None,), "reasoning", "zeros")] if config.loops else []


def output(config: Network) -> Table:
    """Norm and output matrix after the last layer."""
    D, V = config.hidden_size, config.vocab_size
    return [_norm("norm", D), Parameter("head", (D, V), ("embed", "vocab"), "head")]


def latent(config: Network) -> Table:
    """The feedback of latent thoughts: what it adds to the identity, and to the size of an embedding."""
    D = config.hidden_size
    return [
        Parameter("matrix", (D, D), ("embed", None), "latent", "zeros"),
        Parameter("gain", (1,), (None,), "latent", "zeros"),
    ]


def norms(config: Network) -> Table:
    """The norms before attention and before the feed-forward network of a layer."""
    return [_norm("attention_norm", config.hidden_size), _norm("mlp_norm", config.hidden_size)]


def attention(config: Network) -> Table:
    D, N, K, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return [
        Parameter("q", (D, N, H), ("embed", "heads", None), "attention"),
        Parameter("k", (D, K, H), ("embed", "kv_heads", None), "attention"),
        Parameter("v", (D, K, H), ("embed", "kv_heads", None), "attention"),
        Parameter("o", (N, H, D), ("heads", None, "embed"), "attention", "residual", inputs=2),
    ]


def reasoning(config: Network) -> Table:
    """The reasoning heads of a layer that has some."""
    groups = config.reasoning_heads.groups if config.reasoning_heads else ()
    found = [Parameter("gain", (1,), (None,), "reasoning", "ones")]
    for group in groups:
        found += _under(group.name, marked_attention(config, group.heads))
    return found


def marked_attention(config: Network, heads: int) -> Table:
    """One group of reasoning heads. Its output matrix is zero at first, so that the heads add nothing."""
    D, H = config.hidden_size, config.head_dim
    return [
        Parameter("q", (D, heads, H), ("embed", "heads", None), "reasoning"),
        Parameter("k", (D, 1, H), ("embed", None, None), "reasoning"),
        Parameter("v", (D, 1, H), ("embed", None, None), "reasoning"),
        Parameter("o", (heads, H, D), ("heads", None, "embed"), "reasoning", "zeros", inputs=2),
    ]


def dense(config: Network) -> Table:
    """The feed-forward network of a dense layer."""
    return _swiglu(config.hidden_size, config.intermediate_size_mlp, "mlp")


def shared(config: Network) -> Table:
    """The shared expert of a mixture of experts."""
    return _swiglu(config.hidden_size, config.intermediate_size, "shared")


def _swiglu(D: int, F: int, role: Role) -> Table:
    return [
        Parameter("gate", (D, F), ("embed", "mlp"), role),
        Parameter("up", (D, F), ("embed", "mlp"), role),
        Parameter("down", (F, D), ("mlp", "embed"), role, "residual"),
    ]


def experts(config: Network) -> Table:
    """Router and routed experts of a mixture of experts."""
    D, E, F = config.hidden_size, config.num_local_experts, config.intermediate_size
    out_axes = ("experts", "expert_mlp", "expert_embed")
    return [
        Parameter("router", (D, E), (None, None), "router"),
        # gate 0, up 1
        Parameter("experts_in", (E, D, 2, F), ("experts", "expert_embed", None, "expert_mlp"), "experts"),
        Parameter("experts_out", (E, F, D), out_axes, "experts", "residual"),
    ]


def balance(config: Network) -> Table:
    """The loss-free balance bias, if the config has it."""
    if config.balance.kind != "loss_free_bias":
        return []
    return [Parameter(ROUTER_BIAS, (config.num_local_experts,), (None,), "router", "zeros", "float32")]


def of_layer(config: Network, spec: LayerSpec) -> Table:
    """All arrays of one layer, named by their paths in the layer."""
    found = [*norms(config), *_under("attention", attention(config))]
    found += _under("reasoning", reasoning(config)) if spec.reasoning else []
    if not spec.moe:
        return [*found, *_under("mlp", dense(config))]
    return [*found, *_under("moe", [*experts(config), *_under("shared", shared(config)), *balance(config)])]


def _norm(name: str, width: int) -> Parameter:
    return Parameter(name, (width,), (None,), "norms", "ones")


# ---- the image encoder -----------------------------------------------------------------------------------------------


def vision_input(vision: VisionConfig) -> Table:
    """The arrays before the first layer of the image encoder."""
    W = vision.hidden_size
    return [
        _vision("patch", (vision.num_channels * vision.patch_size**2, W), (None, "vision_embed")),
        _vision("class_embedding", (W,), (None,)),
        _vision("positions", (vision.grid**2 + 1, W), (None, None)),
    ]


def vision_output(vision: VisionConfig, text_width: int) -> Table:
    """The adapter, and the projector to the text model's width."""
    F, A = vision.intermediate_size, vision.vision_output_dim
    return [
        Parameter("adapter_in", (F, A), ("vision_embed", "mlp"), "adapter"),
        Parameter("adapter_out", (A, A), ("mlp", "vision_embed"), "adapter"),
        Parameter("projector", (A, text_width), (None, "vision_embed"), "projector"),
    ]


def vision_layer(vision: VisionConfig) -> Table:
    """One layer of the image encoder, without its norms."""
    W, N, H, F = vision.hidden_size, vision.num_attention_heads, vision.head_dim, vision.intermediate_size
    return [
        *(_vision(name, (W, N, H), ("vision_embed", "heads", None)) for name in "qkv"),
        *(_vision(f"{name}_bias", (N, H), ("heads", None), "zeros") for name in "qkv"),
        _vision("o", (N, H, W), ("heads", None, "vision_embed"), inputs=2),
        _vision("o_bias", (W,), (None,), "zeros"),
        _vision("fc1", (W, F), ("vision_embed", "mlp")),
        _vision("fc1_bias", (F,), ("mlp",), "zeros"),
        _vision("fc2", (F, W), ("mlp", "vision_embed")),
        _vision("fc2_bias", (W,), (None,), "zeros"),
    ]


def layer_norm(vision: VisionConfig) -> Table:
    W = vision.hidden_size
    return [_vision("scale", (W,), (None,), "ones"), _vision("bias", (W,), (None,), "zeros")]


def of_vision(config: Network) -> Table:
    """All arrays of the image encoder, adapter and projector, named by their paths; empty for a text model."""
    if (vision := config.vision) is None:
        return []
    norm = lambda name: _under(name, layer_norm(vision))
    layer = [*norm("attention_norm"), *norm("mlp_norm"), *vision_layer(vision)]
    layers = [dataclasses.replace(p, stacked=vision.num_hidden_layers) for p in _under("layers", layer)]
    ends = [*norm("norm_pre"), *norm("norm_post")]
    return [*vision_input(vision), *ends, *layers, *vision_output(vision, config.hidden_size)]


def _vision(name: str, shape: tuple[int, ...], axes: Axes, init: Init = "normal", inputs: int = 1) -> Parameter:
    return Parameter(name, shape, axes, "vision", init, inputs=inputs)


# ---- whole models ----------------------------------------------------------------------------------------------------


def of_model(config: Network) -> tuple[Parameter, ...]:
    """Every array of the model, named by its path, such as `periods/layer_0/attention/q`."""
    found = embedding(config)
    of_spec = {spec: of_layer(config, spec) for spec in set(config.layers)}
    for slot in config.stack.slots:
        table = of_spec[config.layer(slot.layers[0])]
        found += [dataclasses.replace(p, name=slot.prefix + p.name, stacked=slot.stacked) for p in table]
    thoughts = _under(LATENT_PREFIX.removesuffix("/"), latent(config)) if config.latent else []
    return (*found, *loops(config), *output(config), *thoughts, *_under("vision", of_vision(config)))


def by_name(config: Network) -> dict[str, Parameter]:
    """`of_model` by name."""
    return {p.name: p for p in of_model(config)}


def roles_of(config: Network) -> set[Role]:
    """The roles that some array of the model has."""
    return {p.role for p in of_model(config)}


def active(parameter: Parameter, config: Network) -> int:
    """Number of elements that one text token passes through: only its own routed experts count."""
    if parameter.role in VISION_ROLES:
        return 0
    if parameter.role == "experts":
        return parameter.size // config.num_local_experts * config.num_experts_per_tok
    return parameter.size


def _under(prefix: str, table: Iterable[Parameter]) -> Table:
    return [dataclasses.replace(p, name=f"{prefix}/{p.name}") for p in table]

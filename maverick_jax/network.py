"""The config of a Llama 4 network: every number that its mathematics depends on, and the pattern of its layers.

Keys have the names that the public `config.json` of Llama 4 gives them, where it has them.
"""

import enum
import fractions
import math
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field
from pydantic.fields import FieldInfo

from maverick_jax.latent import LatentConfig
from maverick_jax.reasoning import Loops, ReasoningHeads
from maverick_jax.saved import Preset, Remat, Saved, saved
from maverick_jax.settings.section import Section
from maverick_jax.stack import Stack

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
MAX_LAYERS = 4096


def _few(layers: int) -> int:
    if layers > MAX_LAYERS:  # checks go through the layers one by one before anything is built
        raise ValueError(f"at most {MAX_LAYERS} layers, got {layers}")
    return layers


Depth = Annotated[int, Field(ge=1), pydantic.AfterValidator(_few)]
Dtype = Literal["float32", "bfloat16"]
MatmulDtype = Literal["compute", "float8"]


class Purpose(enum.Enum):
    """What a key of `Network` determines."""

    NETWORK = "the function that the network computes and the shapes of its parameters"
    ROUNDING = "how parts of the function are rounded"
    INITIALIZATION = "the values that parameters start from"
    STORAGE = "the dtype in which parameters are stored"
    COMPUTATION = "how the function is computed"
    TRAINING = "what training does beside the objective: losses, updates, rows that it drops"
    EXTENSION = "parts beside a Llama 4 network, which add nothing to one that lacks them until they are trained"


class RopeScaling(Section):
    """Frequency scaling of the rotary embedding (the "llama3" rule; Scout: 16, 1, 1, 8192)."""

    factor: Annotated[float, Field(ge=1.0)] = 16.0
    """Factor by which long wavelengths are stretched."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    original_max_position_embeddings: Positive = 8192
    """Context length, in tokens, that the unscaled frequencies were trained for."""


class Balance(Section):
    """How training keeps the load of the experts even. Only `loss_free_bias` changes the network's function: its bias
    takes part in the choice of experts, and a Llama 4 export cannot contain it."""

    kind: Literal["auxiliary_loss", "loss_free_bias", "none"] = "auxiliary_loss"
    """`auxiliary_loss`: load x probability of each sequence (Switch, arXiv 2101.03961);
    `loss_free_bias`: a bias on the choice only, which each step moves against the load (arXiv 2408.15664)."""
    weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the auxiliary loss."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.001
    """Step of the loss-free bias, in units of router logits."""
    z_loss: Annotated[float, Field(ge=0)] = 0.001
    """Weight of mean(logsumexp(router logits)^2) (ST-MoE, arXiv 2202.08906)."""


def require_whole_tokens(name: str, side: int, patch_size: int, pixel_shuffle_ratio: float) -> None:
    """Raises ValueError unless a tile of `side` pixels (the key `name`) divides into whole patches, and these into
    whole tokens."""
    if side % patch_size:
        raise ValueError(f"{name} ({side}) must be a multiple of patch_size ({patch_size})")
    patches, shuffle = side // patch_size, round(1 / pixel_shuffle_ratio)
    if abs(shuffle * pixel_shuffle_ratio - 1) > 1e-6 or patches % shuffle:
        raise ValueError(
            f"pixel_shuffle_ratio ({pixel_shuffle_ratio}) must be 1/n for an n that divides the {patches} patches "
            "along a side"
        )


class VisionConfig(Section):
    """The image encoder of a multimodal model. The defaults are the values of every released Llama 4."""

    hidden_size: Positive = 1408
    """Width of the encoder's residual stream."""
    num_hidden_layers: Depth = 34
    """Layers of the encoder."""
    num_attention_heads: Positive = 16
    """Attention heads of the encoder; each has its own keys and values."""
    intermediate_size: Positive = 5632
    """Hidden width of the encoder's feed-forward layers. Llama 4 uses the same number for the adapter's input, so it
    must be hidden_size / pixel_shuffle_ratio^2."""
    image_size: Positive = 336
    """Side of a tile, in pixels."""
    patch_size: Positive = 14
    """Side of a patch, in pixels."""
    num_channels: Positive = 3
    """Color channels."""
    pixel_shuffle_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Side of the grid of image tokens divided by the side of the grid of patches; its inverse is a whole number."""
    vision_output_dim: Positive = 4096
    """Width of the adapter."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies, for rows and columns."""
    image_token_index: Natural = 200092
    """Id of `<|patch|>`: each token with this id represents one row of image features."""
    boi_token_index: Natural = 200080
    """Id of `<|image_start|>`."""
    eoi_token_index: Natural = 200081
    """Id of `<|image_end|>`."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        heads, shuffle = self.num_attention_heads, self.shuffle
        if self.hidden_size % (4 * heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of 4 x num_attention_heads ({4 * heads}): half "
                "of each head rotates with the column, half with the row"
            )
        require_whole_tokens("image_size", self.image_size, self.patch_size, self.pixel_shuffle_ratio)
        if self.intermediate_size != self.hidden_size * shuffle**2:
            raise ValueError(
                f"intermediate_size ({self.intermediate_size}) must be hidden_size / pixel_shuffle_ratio^2 "
                f"({self.hidden_size * shuffle**2}), the width of the adapter's input"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def shuffle(self) -> int:
        """Patches along each side that become one token."""
        return round(1 / self.pixel_shuffle_ratio)

    @property
    def grid(self) -> int:
        """Patches along a side of a tile."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // self.shuffle) ** 2


class LayerSpec(Section):
    """The parts of one layer."""

    moe: bool
    rope: bool
    reasoning: bool = False
    """Whether it has reasoning heads."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that this one is (`maverick_jax.saved.SavedNames`)."""
        feed_forward = "moe_layers" if self.moe else "dense_layers"
        return "all_layers", feed_forward, "local_layers" if self.rope else "global_layers"


VISION_KINDS = ("all_layers", "vision_layers")
"""The kinds of an image encoder's layers."""


def _form(remat: Any) -> str:
    return "preset" if isinstance(remat, str) else "lists"


RematChoice = Annotated[
    Annotated[Preset, pydantic.Tag("preset")] | Annotated[Remat, pydantic.Tag("lists")], pydantic.Discriminator(_form)
]


class Network(Section):
    """The config of a Llama 4 network. `maverick_jax.config.ModelConfig` adds shipped models and parameter counts.

    A key without a `Purpose` determines the function that the network computes or the shapes of its parameters."""

    vocab_size: Positive
    """Number of token ids, V."""
    hidden_size: Positive
    """Width of the residual stream, D."""
    num_hidden_layers: Depth
    num_attention_heads: Positive
    """Query heads, N."""
    num_key_value_heads: Positive
    """Key/value heads, K; query head n uses key/value head n // (N/K)."""
    head_dim: Annotated[int, Field(ge=2, multiple_of=2)]
    """Elements per head, H."""
    intermediate_size: Positive = 1
    """Hidden width F of one routed expert and of the shared expert."""
    intermediate_size_mlp: Positive = 1
    """Hidden width of the dense layers."""
    num_local_experts: Natural = 0
    """Routed experts per MoE layer, E; 0 makes every layer dense."""
    num_experts_per_tok: Positive = 1
    """Routed experts per token, top-k."""
    expert_capacity_factor: Annotated[Annotated[float, Field(ge=1.0)] | None, Purpose.TRAINING] = None
    """An expert takes at most ceil(factor x T x top-k / E) tokens of each row of T tokens, the first ones; the others
    get no output of it (GShard, arXiv 2006.16668). null: every expert takes all of its tokens. A model that is loaded
    for generation, for `eval` or as a teacher drops none."""
    interleave_moe_layer_step: Positive = 1
    """Layer i has experts iff (i+1) is a multiple of this. 1: all layers (Scout), 2: every other (Maverick)."""
    no_rope_layer_interval: Natural = 4
    """Layer i has no rotary embedding and attends globally iff (i+1) is a multiple of this; 0: no such layer."""
    attention_chunk_size: Positive | None = 8192
    """Attention span, in tokens, of the layers with rotary embedding; null: full causal attention everywhere."""
    local_attention: Literal["chunked", "sliding_window"] = "chunked"
    """`chunked`: queries see keys of their own block of `attention_chunk_size` positions (Llama 4);
    `sliding_window`: queries see the `attention_chunk_size` most recent keys."""
    use_qk_norm: bool = False
    """RMS norm, without weights, of each query and key head in layers with rotary embedding (Scout)."""
    rope_theta: Annotated[float, Field(gt=0)] = 500000.0
    rope_scaling: RopeScaling | None = None
    attn_temperature_tuning: bool = True
    """Scales queries of the global layers by 1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))."""
    floor_scale: Positive = 8192
    attn_scale: Annotated[float, Field(ge=0)] = 0.1
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0), Purpose.INITIALIZATION] = 0.02
    """Standard deviation of the initial weights."""
    vision: VisionConfig | None = None
    """The image encoder; null: a text model."""
    latent: Annotated[LatentConfig | None, Purpose.EXTENSION] = None
    """Latent thoughts: places where the model reads its own last hidden state; null: none."""
    reasoning_heads: ReasoningHeads | None = None
    """Additional attention heads for declarations of tools and for thoughts; null: none."""
    loops: Loops | None = None
    """Periods of layers that run several times; null: each layer runs once."""
    balance: Annotated[Balance, Purpose.TRAINING] = Balance()
    param_dtype: Annotated[Dtype, Purpose.STORAGE] = "float32"
    """Dtype in which parameters are stored. Gradients are accumulated and updates computed in float32; bfloat16
    parameters are rounded stochastically."""
    compute_dtype: Annotated[Dtype, Purpose.COMPUTATION] = "bfloat16"
    """Dtype of activations and of the operands of matrix products. Softmax, norms, router and loss are computed in
    float32, and so is every sum over tokens, also of gradients."""
    matmul_dtype: Annotated[MatmulDtype, Purpose.COMPUTATION] = "compute"
    """Dtype of the operands of the products of attention (q, k, v, o), dense layers and shared experts, forward and
    backward. `float8` rounds inputs and weights to e4m3 and cotangents to e5m2, each array with one scale that its
    largest element decides; sums are float32. `compute`: `compute_dtype`, as in all other products."""
    router_dtype: Annotated[Literal["float32", "compute"], Purpose.ROUNDING] = "float32"
    """`compute` rounds router logits to `compute_dtype`, as the public implementation does."""
    remat: Annotated[RematChoice, Purpose.COMPUTATION] = "full"
    """What the backward pass finds saved and what it recomputes: lists of names by kind of layer, or a preset. `none`
    recomputes nothing; `dots` keeps what matrix products and kernels give; `attention`, the outputs of attention;
    `full` recomputes each layer. All but `full` keep the rows that a device received for its experts, so that they are
    not sent again."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.num_local_experts and self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds num_local_experts ({self.num_local_experts})"
            )
        if any(s.moe for s in self.layers) and self.intermediate_size == 1:
            raise ValueError("intermediate_size (expert width) must be given for a model with experts")
        if any(not s.moe for s in self.layers) and self.intermediate_size_mlp == 1:
            raise ValueError("intermediate_size_mlp (dense width) must be given for a model with dense layers")
        if self.local_attention == "sliding_window" and self.attention_chunk_size is None:
            raise ValueError("local_attention: sliding_window requires attention_chunk_size, the window's length")
        self._require_reasoning_layers()
        if self.loops and self.loops.periods[1] > self.num_periods:
            first, end = self.loops.periods
            raise ValueError(f"loops.periods: [{first}, {end}]; expected an end of at most {self.num_periods}, the "
                             f"whole periods of {len(self.period)} layers")  # fmt: skip
        for kinds in dict.fromkeys([*(spec.kinds for spec in self.layers), VISION_KINDS]):
            saved(self.remat, kinds)
        if self.vision is not None and self.vision.image_token_index >= self.vocab_size:
            raise ValueError(
                f"vision.image_token_index ({self.vision.image_token_index}) must be less than vocab_size "
                f"({self.vocab_size})"
            )
        if self.latent is not None and self.latent.token_id >= self.vocab_size:
            raise ValueError(
                f"latent.token_id ({self.latent.token_id}) must be less than vocab_size ({self.vocab_size})"
            )
        return self

    def _require_reasoning_layers(self) -> None:
        for i in (self.reasoning_heads and self.reasoning_heads.layers) or ():
            fitting = [k for k, spec in enumerate(self.period) if spec.rope and k < self.num_hidden_layers]
            if i not in fitting:
                raise ValueError(f"reasoning_heads.layers: {i} is no layer with rotary embedding of a period; "
                                 f"expected some of {', '.join(map(str, fitting)) or 'none'}")  # fmt: skip

    @classmethod
    def keys_of(cls, *purposes: Purpose) -> tuple[str, ...]:
        """The keys that have one of these purposes, in declaration order."""
        return tuple(key for key, field in Network.model_fields.items() if _purpose(field) in purposes)

    @property
    def dropless(self) -> Self:
        """This config with experts that take all of their tokens."""
        return self.model_copy(update={"expert_capacity_factor": None})

    def expert_limit(self, length: int) -> int | None:
        """The most tokens of a row of `length` tokens that one expert takes; None: all."""
        if self.expert_capacity_factor is None:
            return None
        factor = fractions.Fraction(str(self.expert_capacity_factor))  # 1.1 x 10 in floats is more than 11
        return min(length, math.ceil(factor * length * self.num_experts_per_tok / self.num_local_experts))

    # ---- the layer pattern -------------------------------------------------------------------------------------

    def layer(self, index: int) -> LayerSpec:
        """The parts of layer `index` (0-based)."""
        moe = self.num_local_experts > 0 and (index + 1) % self.interleave_moe_layer_step == 0
        nope = self.no_rope_layer_interval > 0 and (index + 1) % self.no_rope_layer_interval == 0
        heads = self.reasoning_heads
        reasoning = heads is not None and heads.on(index % self._period_length, not nope)
        return LayerSpec(moe=moe, rope=not nope, reasoning=reasoning)

    def saved(self, spec: LayerSpec | None) -> Saved:
        """What such a layer saves for its backward pass; None: a layer of the image encoder."""
        return saved(self.remat, VISION_KINDS if spec is None else spec.kinds)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(self.layer(i) for i in range(self.num_hidden_layers))

    @property
    def period(self) -> tuple[LayerSpec, ...]:
        """The shortest repeating pattern of layers. It is cut one layer past the depth, because two intervals may only
        coincide after millions of layers; a model with fewer layers than one period is all tail."""
        return tuple(self.layer(i) for i in range(min(self._period_length, self.num_hidden_layers + 1)))

    @property
    def _period_length(self) -> int:
        return math.lcm(
            self.interleave_moe_layer_step if self.num_local_experts else 1, self.no_rope_layer_interval or 1
        )

    @property
    def num_periods(self) -> int:
        return self.num_hidden_layers // len(self.period)

    @property
    def tail(self) -> tuple[LayerSpec, ...]:
        """The layers after the last whole period."""
        return self.period[: self.num_hidden_layers % len(self.period)]

    @property
    def stack(self) -> Stack:
        """The addresses of the layers' arrays."""
        return Stack(len(self.period), self.num_periods, len(self.tail))

    @property
    def period_visits(self) -> tuple[int, ...]:
        """The periods in the order in which a forward pass runs them; those of `loops` occur several times."""
        order = tuple(range(self.num_periods))
        if self.loops is None:
            return order
        first, end = self.loops.periods
        return (*order[:first], *order[first:end] * self.loops.times, *order[end:])

    @property
    def repeats(self) -> bool:
        """Whether some periods run more than once."""
        return self.loops is not None and self.loops.times > 1

    @property
    def visits(self) -> tuple[int, ...]:
        """The layers in the order in which a forward pass runs them."""
        size, stacked = len(self.period), self.stack.num_stacked
        layers = [period * size + i for period in self.period_visits for i in range(size)]
        return (*layers, *range(stacked, self.num_hidden_layers))

    @property
    def num_moe_layers(self) -> int:
        return len(self.moe_layers)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The indices, from 0, of the layers that are mixtures of experts."""
        return tuple(i for i, spec in enumerate(self.layers) if spec.moe)


def _purpose(field: FieldInfo) -> Purpose:
    return next((found for found in field.metadata if isinstance(found, Purpose)), Purpose.NETWORK)

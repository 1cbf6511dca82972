"""The shape of a Llama 4 network: every number its mathematics depends on, and the pattern of its layers.

Field names follow the public `config.json` of Llama 4 where it has one, so that a reader of either knows both.
"""

import enum
import functools
import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from pydantic.fields import FieldInfo

from maverick_jax.settings.section import Section
from maverick_jax.stack import Stack

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
MAX_LAYERS = 4096


def _few(layers: int) -> int:
    if layers > MAX_LAYERS:  # each is looked at by itself, before anything is built
        raise ValueError(f"at most {MAX_LAYERS} layers, got {layers}")
    return layers


Depth = Annotated[int, Field(ge=1), pydantic.AfterValidator(_few)]
Dtype = Literal["float32", "bfloat16"]


class Purpose(enum.Enum):
    """What a field of `Network` is for."""

    NETWORK = "the function that the network computes and the shapes of its parameters"
    ROUNDING = "how parts of the function are rounded"
    INITIALIZATION = "the values that parameters start from"
    STORAGE = "what parameters are stored in"
    COMPUTATION = "how the function is computed"
    TRAINING = "losses and updates beside the objective's"


class RopeScaling(Section):
    """Frequency scaling of the rotary embedding (the "llama3" rule; Scout: 16, 1, 1, 8192)."""

    factor: Annotated[float, Field(ge=1.0)] = 16.0
    """Long wavelengths are stretched by this much."""
    low_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    high_freq_factor: Annotated[float, Field(gt=0)] = 1.0
    original_max_position_embeddings: Positive = 8192
    """Context length, in tokens, that the unscaled frequencies were trained for."""


class Balance(Section):
    """How the load of the experts is kept even during training. None of it changes the network's function,
    except `loss_free_bias`, whose bias takes part in the choice of experts and has no place in a Llama 4 export."""

    kind: Literal["auxiliary_loss", "loss_free_bias", "none"] = "auxiliary_loss"
    """`auxiliary_loss`: per-sequence load x probability (Switch, arXiv 2101.03961);
    `loss_free_bias`: a bias on the choice only, moved against the load after each step (arXiv 2408.15664)."""
    weight: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the auxiliary loss."""
    bias_rate: Annotated[float, Field(ge=0)] = 0.001
    """Step of the loss-free bias, in units of router logits."""
    z_loss: Annotated[float, Field(ge=0)] = 0.001
    """Weight of mean(logsumexp(router logits)^2) (ST-MoE, arXiv 2202.08906)."""


def require_whole_tokens(name: str, side: int, patch_size: int, pixel_shuffle_ratio: float) -> None:
    """Raises ValueError unless a tile of `side` pixels (the key `name`) is whole patches, and these whole tokens."""
    if side % patch_size:
        raise ValueError(f"{name} ({side}) must be a multiple of patch_size ({patch_size})")
    patches, shuffle = side // patch_size, round(1 / pixel_shuffle_ratio)
    if abs(shuffle * pixel_shuffle_ratio - 1) > 1e-6 or patches % shuffle:
        raise ValueError(
            f"pixel_shuffle_ratio ({pixel_shuffle_ratio}) must be 1/n for an n that divides the {patches} patches "
            "along a side"
        )


class VisionConfig(Section):
    """The image encoder of a multimodal model. The defaults are those of every released Llama 4."""

    hidden_size: Positive = 1408
    """Width of the encoder's residual stream."""
    num_hidden_layers: Depth = 34
    """Layers of the encoder."""
    num_attention_heads: Positive = 16
    """Heads of the encoder; each has its own keys and values."""
    intermediate_size: Positive = 5632
    """Hidden width of the encoder's feed-forward layers. Llama 4 uses the same number for what the adapter reads, so it
    must be hidden_size / pixel_shuffle_ratio^2."""
    image_size: Positive = 336
    """Side of a tile, in pixels."""
    patch_size: Positive = 14
    """Side of a patch, in pixels."""
    num_channels: Positive = 3
    """Colours of a pixel."""
    pixel_shuffle_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Side of the grid of image tokens over that of the grid of patches; its inverse is a whole number."""
    vision_output_dim: Positive = 4096
    """Width of the adapter."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies of rows and columns."""
    image_token_index: Natural = 200092
    """Id of `<|patch|>`: each token with this id stands for one row of image features."""
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
                "of each head turns with the column, half with the row"
            )
        require_whole_tokens("image_size", self.image_size, self.patch_size, self.pixel_shuffle_ratio)
        if self.intermediate_size != self.hidden_size * shuffle**2:
            raise ValueError(
                f"intermediate_size ({self.intermediate_size}) must be hidden_size / pixel_shuffle_ratio^2 "
                f"({self.hidden_size * shuffle**2}), which is what the adapter reads"
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
    """What one layer is made of."""

    moe: bool
    rope: bool


class Network(Section):
    """One Llama 4 network. `maverick_jax.config.ModelConfig` adds the shipped models and the counts.

    A field without a `Purpose` determines the function that the network computes or the shapes of its parameters."""

    vocab_size: Positive
    """Token ids, V."""
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
    """Experts each token is sent to, top-k."""
    interleave_moe_layer_step: Positive = 1
    """Layer i has experts iff (i+1) is a multiple of this. 1: all layers (Scout), 2: every other (Maverick)."""
    no_rope_layer_interval: Natural = 4
    """Layer i has no rotary embedding and attends globally iff (i+1) is a multiple of this; 0: no such layer."""
    attention_chunk_size: Positive | None = 8192
    """Reach, in tokens, of the layers with rotary embedding; null: full causal attention everywhere."""
    local_attention: Literal["chunked", "sliding_window"] = "chunked"
    """`chunked`: keys of the same block of `attention_chunk_size` positions (Llama 4);
    `sliding_window`: the `attention_chunk_size` most recent keys."""
    use_qk_norm: bool = False
    """Weightless RMS norm of each query and key head in layers with rotary embedding (Scout)."""
    rope_theta: Annotated[float, Field(gt=0)] = 500000.0
    rope_scaling: RopeScaling | None = None
    attn_temperature_tuning: bool = True
    """Scale queries of the global layers by 1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))."""
    floor_scale: Positive = 8192
    attn_scale: Annotated[float, Field(ge=0)] = 0.1
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    initializer_range: Annotated[float, Field(gt=0), Purpose.INITIALIZATION] = 0.02
    """Standard deviation of the initial weights."""
    vision: VisionConfig | None = None
    """The image encoder; null: a text model."""
    balance: Annotated[Balance, Purpose.TRAINING] = Balance()
    param_dtype: Annotated[Dtype, Purpose.STORAGE] = "float32"
    """What parameters are stored and updated in."""
    compute_dtype: Annotated[Dtype, Purpose.COMPUTATION] = "bfloat16"
    """What matrix products are computed in. Softmax, norms, router and loss are always float32."""
    router_dtype: Annotated[Literal["float32", "compute"], Purpose.ROUNDING] = "float32"
    """`compute` rounds router logits to `compute_dtype`, as the public implementation does."""
    remat: Annotated[Literal["none", "dots", "attention", "full"], Purpose.COMPUTATION] = "full"
    """What the backward pass recomputes: nothing; all but matrix products; all but attention outputs; each layer."""

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
            raise ValueError("local_attention: sliding_window needs attention_chunk_size, the window's length")
        if self.vision is not None and self.vision.image_token_index >= self.vocab_size:
            raise ValueError(
                f"vision.image_token_index ({self.vision.image_token_index}) is no token id: vocab_size is "
                f"{self.vocab_size}"
            )
        return self

    @classmethod
    def keys_of(cls, *purposes: Purpose) -> tuple[str, ...]:
        """The keys of the fields that have one of these purposes, in the order of their declaration."""
        return tuple(key for key, field in Network.model_fields.items() if _purpose(field) in purposes)

    # ---- the layer pattern -------------------------------------------------------------------------------------

    def layer(self, index: int) -> LayerSpec:
        """What layer `index` (0-based) is made of."""
        moe = self.num_local_experts > 0 and (index + 1) % self.interleave_moe_layer_step == 0
        nope = self.no_rope_layer_interval > 0 and (index + 1) % self.no_rope_layer_interval == 0
        return LayerSpec(moe=moe, rope=not nope)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(self.layer(i) for i in range(self.num_hidden_layers))

    @functools.cached_property
    def period(self) -> tuple[LayerSpec, ...]:
        """The shortest repeating run of layers. A model of fewer layers than that is all tail; no more than one layer
        beyond it is then listed, for two intervals may only meet again after millions."""
        length = math.lcm(
            self.interleave_moe_layer_step if self.num_local_experts else 1, self.no_rope_layer_interval or 1
        )
        return tuple(self.layer(i) for i in range(min(length, self.num_hidden_layers + 1)))

    @property
    def num_periods(self) -> int:
        return self.num_hidden_layers // len(self.period)

    @property
    def tail(self) -> tuple[LayerSpec, ...]:
        """The layers left over when the depth is not a whole number of periods."""
        return self.period[: self.num_hidden_layers % len(self.period)]

    @property
    def stack(self) -> Stack:
        """Where the arrays of each layer lie."""
        return Stack(len(self.period), self.num_periods, len(self.tail))

    @property
    def num_moe_layers(self) -> int:
        return len(self.moe_layers)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that are mixtures of experts, from 0."""
        return tuple(i for i, spec in enumerate(self.layers) if spec.moe)


def _purpose(field: FieldInfo) -> Purpose:
    return next((found for found in field.metadata if isinstance(found, Purpose)), Purpose.NETWORK)

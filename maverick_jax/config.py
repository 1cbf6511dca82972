"""The shape of a Llama 4 model: every number the network's mathematics depends on.

Field names follow the public `config.json` of Llama 4 where it has one, so that a reader of either knows both.
Source of the values: the public model description; see `docs/architecture.md`.
"""

import functools
import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from maverick_jax.section import Section

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Dtype = Literal["float32", "bfloat16"]


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


class LayerSpec(Section):
    """What one layer is made of."""

    moe: bool
    rope: bool


class ModelConfig(Section):
    """One Llama 4 text model. `ModelConfig.from_name` gives the shipped ones."""

    vocab_size: Positive
    """Token ids, V."""
    hidden_size: Positive
    """Width of the residual stream, D."""
    num_hidden_layers: Positive
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
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the initial weights."""
    balance: Balance = Balance()
    param_dtype: Dtype = "float32"
    """What parameters are stored and updated in."""
    compute_dtype: Dtype = "bfloat16"
    """What matrix products are computed in. Softmax, norms, router and loss are always float32."""
    router_dtype: Literal["float32", "compute"] = "float32"
    """`compute` rounds router logits to `compute_dtype`, as the public implementation does."""
    remat: Literal["none", "dots", "attention", "full"] = "full"
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
        return self

    @classmethod
    def from_name(cls, name: str) -> "ModelConfig":
        """The shipped model `name` (`tiny`, `maverick_17b_128e`, ...). Raises InputError for an unknown name."""
        from maverick_jax.shipped import read_model

        return read_model(name)

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
        """The shortest repeating run of layers. A model of fewer layers than that is all tail."""
        length = math.lcm(
            self.interleave_moe_layer_step if self.num_local_experts else 1, self.no_rope_layer_interval or 1
        )
        return tuple(self.layer(i) for i in range(length))

    @property
    def num_periods(self) -> int:
        return self.num_hidden_layers // len(self.period)

    @property
    def tail(self) -> tuple[LayerSpec, ...]:
        """The layers left over when the depth is not a whole number of periods."""
        return self.period[: self.num_hidden_layers % len(self.period)]

    @property
    def num_moe_layers(self) -> int:
        return sum(spec.moe for spec in self.layers)

    # ---- counts ------------------------------------------------------------------------------------------------

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert, routed or shared."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def attention_parameters(self) -> int:
        return 2 * self.hidden_size * self.head_dim * (self.num_attention_heads + self.num_key_value_heads)

    def num_parameters(self) -> int:
        """All parameters of the text model, embedding and head included."""
        routed = self.num_moe_layers * self.num_local_experts * self.expert_parameters
        return self._parameters_outside_routed_experts() + routed

    def num_active_parameters(self) -> int:
        """Parameters that one token passes through, embedding table and head included."""
        routed = self.num_moe_layers * self.num_experts_per_tok * self.expert_parameters
        return self._parameters_outside_routed_experts() + routed

    def _parameters_outside_routed_experts(self) -> int:
        D, dense = self.hidden_size, self.num_hidden_layers - self.num_moe_layers
        per_moe = D * self.num_local_experts + self.expert_parameters
        return (
            2 * self.vocab_size * D
            + self.num_hidden_layers * (self.attention_parameters + 2 * D)
            + D
            + dense * 3 * D * self.intermediate_size_mlp
            + self.num_moe_layers * per_moe
        )

"""Peak bytes per device in a train step."""

from collections.abc import Callable, Iterable

from maverick_jax import parameters
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.model.remat import POLICIES, Widths
from maverick_jax.network import LayerSpec
from maverick_jax.ops.cross_entropy import default_rows
from maverick_jax.parameters import Parameter

COMPILER_SHARE = 0.5
"""Temporary memory beyond the closed form, as a fraction of it. Steps of Maverick's shape, compiled ahead of time for
512 H200, took 1.4 to 1.7 times the closed form (25, 29 and 185 GiB in all with remat full, attention and none)."""


def memory(
    config: ModelConfig,
    layout: Layout,
    *,
    state_bytes: Callable[[Parameter], int] = lambda parameter: 8,
    trained: Iterable[Parameter] | None = None,
) -> dict[str, int]:
    """Bytes per device at the worst moment of a step, by what they hold. Parameters that are not among `trained`
    (None: all are) have neither gradients nor optimizer state. `state_bytes`: bytes of optimizer state per element of a
    parameter; two float32 moments unless given.

    Weights, optimizer state and gradients are exact. Activations and the working set are what layers must keep by
    `config.remat`; compilers keep more, for which `compiler` allows.
    """
    trained = list(parameters.of_model(config) if trained is None else trained)
    # a microbatch's gradients have the parameters' dtype; their sum over microbatches is float32
    gradient = BYTES[config.param_dtype] + (BYTES["float32"] if layout.accumulation_steps > 1 else 0)
    per_layer = [_activation_bytes(config, spec, layout) for spec in config.layers]
    whole = [_activation_bytes(config, spec, layout, remat="none") for spec in config.layers]
    recomputed = max(whole) if POLICIES[config.remat].recomputes else 0
    working_set = recomputed + _gathered_bytes(config, layout) + _loss_bytes(config, layout)
    return {
        "weights": weight_bytes(config, layout),
        "optimizer": sum(layout.stored([p]) * state_bytes(p) for p in trained),
        "gradients": layout.stored(trained) * gradient,
        "activations": sum(per_layer),
        "working_set": working_set,
        "compiler": int(COMPILER_SHARE * (sum(per_layer) + working_set)),
    }


def weight_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of the parameters that one device stores."""
    return layout.stored(parameters.of_model(config)) * BYTES[config.param_dtype]


def _activation_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout, remat: str | None = None) -> int:
    """Bytes that one layer's forward pass saves for its backward pass on one device."""
    heads = config.num_attention_heads * config.head_dim // layout.ways("heads")
    kv = config.num_key_value_heads * config.head_dim // layout.ways("kv_heads")
    k = config.num_experts_per_tok
    if spec.moe:
        hidden = config.intermediate_size * (1 / layout.ways("mlp") + k / layout.ways("expert_mlp"))
        widths = Widths(config.hidden_size, heads, kv, hidden, k * config.hidden_size)
    else:
        widths = Widths(config.hidden_size, heads, kv, config.intermediate_size_mlp / layout.ways("mlp"), 0)
    kept = POLICIES[remat or config.remat].kept(widths)
    return int(kept * layout.tokens * BYTES[config.compute_dtype])


def _gathered_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of the largest layer's gathered weights and of their gradients."""

    def whole(spec: LayerSpec) -> int:
        return layout.used(parameters.of_layer(config, spec)) * BYTES[config.compute_dtype]

    return 2 * max(whole(spec) for spec in set(config.layers))


def _loss_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of a chunk's logits and their gradient in float32, of the final hidden states with their gradient, and of
    the gathered output matrix with its gradient, a float32 sum."""
    vocabulary = config.vocab_size // layout.ways("vocab")
    rows = min(layout.tokens, layout.loss_chunk or default_rows(vocabulary, layout.platform))
    element, wide = BYTES[config.compute_dtype], BYTES["float32"]
    whole = (2 * layout.tokens * element + vocabulary * (element + wide)) * config.hidden_size
    return 2 * wide * rows * vocabulary + whole

"""What the backward pass of a period of a scan needs on one device, beside activations and gradients of all layers.

GPU programs compute the gradients of a layer before they go on to the one below. TPU programs compute a period's
gradients of dense weights last and hold their operands until then; they also copy weights before the loop. Read off the
buffers of steps compiled for H200 and TPU (docs/scaling.md).
"""

from maverick_jax import parameters
from maverick_jax.accounting import activations, attention, experts, reasoning
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.parameters import Parameter
from maverick_jax.saved import EVERYTHING, INPUT, MLP, QKV, RESIDUAL
from maverick_jax.stack import PERIODS


def worst(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> dict[str, int]:
    """Bytes at the layer of a period that needs most. `recomputed`, `attention` and `gathered` as of `memory.memory`;
    `operands`: those of weight gradients that wait for the period's end; `copies`: of weights, for all layers."""
    if layout.platform == "tpu":
        moments = _moments_on_tpu(config, layout, trained)
        more = {"copies": _copies(config, layout)}
    else:
        moments, more = [layer_bytes(config, spec, layout.in_stage) for spec in set(config.layers)], {}
    found = max(moments, key=lambda moment: sum(moment.values()))
    return {**found, **more, "gathered": found["gathered"] + _gradients(config, layout, trained)}


def layer_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> dict[str, int]:
    """What the backward pass of one layer needs, if it computes the gradients of its weights too."""
    recomputes = EVERYTHING not in config.saved(spec).keep
    return {
        "recomputed": activations.recomputed_bytes(config, spec, layout) if recomputes else 0,
        "attention": attention.working_set(config, spec, layout) + reasoning.working_set(config, spec, layout),
        "gathered": layout.used(parameters.of_layer(config, spec)) * BYTES[config.compute_dtype],
    }


def is_scanned(p: Parameter, config: ModelConfig) -> bool:
    """Whether a loop over periods uses a parameter."""
    return p.name.startswith(PERIODS) and config.num_periods > 1


def _moments_on_tpu(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> list[dict[str, int]]:
    """Of each layer of a period, the last first: its feed-forward network, while operands of the layers above wait,
    then its attention, while its own do too."""
    found, waiting, roles = [], 0, {p.role for p in trained}
    layout = layout.in_stage
    for spec in reversed(config.period):
        above, own = waiting, layer_bytes(config, spec, layout)
        again = min(own["recomputed"], activations.recomputed_in_feed_forward(config, spec, layout))
        waiting += _operands(config, spec, layout) if roles & {"attention", "mlp", "shared"} else 0
        found.append({"operands": above, **own, "recomputed": again, "attention": 0})
        found.append({"operands": waiting, "recomputed": 0, "attention": own["attention"], "gathered": 0})
    return found


def _operands(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the operands of one layer's gradients of dense weights: the layer's input, the stream between its
    blocks and the gradients of both blocks' results; attended values, and gradients of queries, keys and values; hidden
    units before the activation, and their gradients."""
    named = activations.named_bytes(config, spec, layout)
    attended = layout.tokens * config.num_attention_heads // layout.ways("heads") * config.head_dim
    streams = 3 * named[INPUT] + named[RESIDUAL]
    return streams + attended * BYTES[config.compute_dtype] + named[QKV] + 2 * named[MLP]


def _copies(config: ModelConfig, layout: Layout) -> int:
    """Bytes of weights that are copied before the loop over periods: all that are stored in another dtype than they are
    used in, and pairs of matrices, which are stored row by row and used one after the other."""
    element, casts = BYTES[config.compute_dtype], config.param_dtype != config.compute_dtype
    scanned = [p for p in parameters.of_model(config) if is_scanned(p, config)]
    return layout.stored(p for p in scanned if casts or _is_pair(p)) * element


def _is_pair(p: Parameter) -> bool:
    return len(p.axes) > 2 and p.axes[-2] is None and p.shape[-2] == 2


def _gradients(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> int:
    """Bytes of the gradients of one period's weights, before they are scattered or collected: compilers do that at the
    end of a period, to overlap it. On TPUs those of dense weights take the places of their operands."""
    found = 0
    for p in trained:
        routed = p.role == "experts"
        waits = routed or layout.platform != "tpu"
        if waits and p.stacked and (is_scanned(p, config) or layout.gathered(p.axes) > 1):
            wide = experts.gradient_bytes(config, layout) if routed else BYTES[config.compute_dtype]
            found += layout.used([p]) * layout.stages // p.stacked * wide
    return found

"""What the backward pass of a period of a scan needs on one device, beside activations and gradients of all layers.

GPU programs compute the gradients of a layer before they go on to the one below, and scatter or collect those of a
period at its end, to overlap it. TPU programs compute a period's gradients of dense weights last and hold their
operands until then. Both copy weights before the loop. Read off the buffers of steps compiled for H200 and TPU
(docs/scaling.md).
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
    """Bytes at the layer of a period that needs most. `recomputed`, `attention`, `gathered`, `copies` and `operands` as
    of `memory.memory`; `loss`: the gradient of the output matrix, which waits for its reduce-scatter."""
    moments = (_moments_on_tpu if layout.platform == "tpu" else _moments_on_gpu)(config, layout, trained)
    return {**max(moments, key=lambda moment: sum(moment.values())), "copies": copies(config, layout)}


def copies(config: ModelConfig, layout: Layout) -> int:
    """Bytes of weights that are copied into another layout or dtype before the first loop over periods."""
    return (_copies_on_tpu if layout.platform == "tpu" else _copies_on_gpu)(config, layout)


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


def _moments_on_gpu(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> list[dict[str, int]]:
    """Of each layer of a period, the last first, while gradients of the layers above wait in the dtype of the products:
    before its own weights' gradients, and with them, when values of routed experts are no longer needed. Rounds of
    experts are summed in float32 until the layer is done. The output matrix's gradient waits during the first layer."""
    found, narrow, wide = [], BYTES[config.compute_dtype], experts.gradient_bytes(config, layout)
    waiting = sum(_one(p, config, layout) for p in trained if config.stack.find(p.name) is None) * narrow
    microbatch = layout.in_stage
    for i, spec in reversed(list(enumerate(config.period))):
        mine = [p for p in trained if p.name.startswith(f"{PERIODS}/layer_{i}/")]
        routed = sum(_one(p, config, layout) for p in mine if p.role == "experts")
        own = sum(_one(p, config, layout) for p in mine) * narrow
        each = layer_bytes(config, spec, microbatch)
        later = max(0, each["recomputed"] - activations.routed_bytes(config, spec, microbatch))
        each["loss"] = _of_head(layout, trained) * narrow if not found else 0
        done = waiting + max(own, routed * wide)
        found.append({**each, "gathered": each["gathered"] + waiting})
        found.append({**each, "recomputed": later, "gathered": each["gathered"] + done})
        waiting += own
    return found


def _moments_on_tpu(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> list[dict[str, int]]:
    """Of each layer of a period, the last first: its feed-forward network, while operands of the layers above wait,
    then its attention, while its own do too. The sum of the output matrix's gradient is cast when it is reduced."""
    found, waiting, roles = [], 0, {p.role for p in trained}
    layout = layout.in_stage
    for spec in reversed(config.period):
        above, own = waiting, layer_bytes(config, spec, layout)
        again = min(own["recomputed"], activations.recomputed_in_feed_forward(config, spec, layout))
        waiting += _operands(config, spec, layout) if roles & {"attention", "mlp", "shared"} else 0
        found.append({"operands": above, **own, "recomputed": again, "attention": 0})
        found.append({"operands": waiting, "recomputed": 0, "attention": own["attention"], "gathered": 0})
    wide = experts.gradient_bytes(config, layout)  # dense gradients take the places of their operands
    routed = sum(_one(p, config, layout) for p in trained if p.role == "experts") * wide
    head = _of_head(layout, trained) * BYTES["float32"]
    return [{**moment, "gathered": moment["gathered"] + routed, "loss": head} for moment in found]


def _operands(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the operands of one layer's gradients of dense weights: the layer's input, the stream between its
    blocks and the gradients of both blocks' results; attended values, and gradients of queries, keys and values; hidden
    units before the activation, and their gradients."""
    named = activations.named_bytes(config, spec, layout)
    attended = layout.tokens * config.num_attention_heads // layout.ways("heads") * config.head_dim
    streams = 3 * named[INPUT] + named[RESIDUAL]
    return streams + attended * BYTES[config.compute_dtype] + named[QKV] + 2 * named[MLP]


def _copies_on_gpu(config: ModelConfig, layout: Layout) -> int:
    """Bytes of weights that are copied before the loop over periods: those that are gathered along another dimension
    than their first. Compilers gather along the first one."""
    found = 0
    for p in parameters.of_model(config):
        if is_scanned(p, config) and layout.gathered(p.axes) > 1 and not _is_gathered_first(p, layout):
            found += layout.held(p) * BYTES[config.param_dtype]
    return found


def _is_gathered_first(p: Parameter, layout: Layout) -> bool:
    """Whether the first dimension of a device's part that is longer than 1 is one along which weights are gathered."""
    for axis, size in zip(p.axes, p.shape, strict=True):
        if layout.gathered((axis,)) > 1:
            return True
        if size // layout.parts((axis,)) > 1:
            return False
    return True


def _of_head(layout: Layout, trained: list[Parameter]) -> int:
    """Elements of the gradient of the output matrix, if it is gathered before use."""
    return layout.used(p for p in trained if p.role == "head" and layout.gathered(p.axes) > 1)


def _copies_on_tpu(config: ModelConfig, layout: Layout) -> int:
    """Bytes of weights that are copied before the loop over periods: all that are stored in another dtype than they are
    used in, and pairs of matrices, which are stored row by row and used one after the other."""
    element, casts = BYTES[config.compute_dtype], config.param_dtype != config.compute_dtype
    scanned = [p for p in parameters.of_model(config) if is_scanned(p, config)]
    return layout.stored(p for p in scanned if casts or _is_pair(p)) * element


def _is_pair(p: Parameter) -> bool:
    return len(p.axes) > 2 and p.axes[-2] is None and p.shape[-2] == 2


def _one(p: Parameter, config: ModelConfig, layout: Layout) -> int:
    """Elements of a gradient of one layer on one device, before it is scattered or collected; 0: it does not wait."""
    if not p.stacked or not (is_scanned(p, config) or layout.gathered(p.axes) > 1):
        return 0
    return layout.used([p]) * layout.stages // p.stacked

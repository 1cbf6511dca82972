"""Peak bytes per device in a train step.

Three moments can be the worst: the loss, while the gradient of the output matrix is summed; the backward pass of a
layer, with the gradients and what the layers saved; and the update. What is alive at each was read off steps compiled
for H200 clusters (docs/scaling.md compares).
"""

from collections.abc import Callable, Iterable

from maverick_jax import parameters
from maverick_jax.accounting import activations, period, pictures
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.ops.cross_entropy import default_rows
from maverick_jax.parameters import Parameter

FRAGMENTATION = 0.05
"""Holes between temporary arrays, as a fraction of them: 1 to 14% in steps compiled for H200."""


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

    `activations` are what layers keep by `config.remat`; `recomputed`, what the backward pass of a layer computes
    again; `tiles`, the pictures of a batch; `attention`, the working set of attention; `gathered`, the weights of a
    layer as they are used, with the gradients of a period as they leave the products; `copies`, weights in another
    layout or dtype; `operands`, what TPU programs hold besides (`accounting.period`); `loss`, chunks of logits, the
    output matrix and its gradient.
    """
    trained = list(parameters.of_model(config) if trained is None else trained)
    moments = [
        _at_loss(config, layout, trained),
        _in_backward(config, layout, trained),
        _at_update(config, layout, trained),
        *_in_encoder(config, layout, trained),
    ]
    held = max(moments, key=lambda moment: sum(moment.values()))
    return {
        "weights": weight_bytes(config, layout),
        "optimizer": sum(layout.stored([p]) * state_bytes(p) for p in trained),
        **({"tiles": pictures.tile_bytes(config, layout)} if layout.tiles else {}),
        **held,
        "fragmentation": int(FRAGMENTATION * sum(held.values())),
    }


def weight_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of the parameters that one device stores."""
    return layout.stored(parameters.of_model(config)) * BYTES[config.param_dtype]


# ---- the moments -----------------------------------------------------------------------------------------------------


def _at_loss(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> dict[str, int]:
    """A chunk's logits and their gradient in float32, the final hidden states with their gradient, and the output
    matrix with its gradient, a float32 sum, if it is trained."""
    vocabulary = config.vocab_size // layout.ways("vocab")
    rows = min(layout.tokens, layout.loss_chunk or default_rows(vocabulary, layout.platform))
    element, wide = BYTES[config.compute_dtype], BYTES["float32"]
    matrix = element + wide * any(p.role == "head" for p in trained)
    whole = (2 * layout.tokens * element + vocabulary * matrix) * config.hidden_size
    return {
        "activations": _kept(config, layout) + pictures.kept_bytes(config, layout, trained),
        "gradients": _summed_gradients(config, layout, trained),
        "loss": 2 * wide * rows * vocabulary + whole,
        "copies": period.copies(config, layout),
    }


def _in_backward(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> dict[str, int]:
    """The layer that needs most. A scan over periods holds activations and gradients of all layers as a whole; without
    one, a layer's activations go before its gradients come."""
    if config.num_periods <= 1:
        each = [_at_layer(config, layout, trained, i) for i in range(len(config.layers))]
        return max(each, key=lambda moment: sum(moment.values()))
    return {
        "activations": _kept(config, layout)
        + activations.in_flight_bytes(config, layout)
        + pictures.kept_bytes(config, layout, trained),
        "gradients": _gradient_bytes(config, layout, trained),
        **period.worst(config, layout, trained),
    }


def _at_layer(config: ModelConfig, layout: Layout, trained: list[Parameter], i: int) -> dict[str, int]:
    """The backward pass of layer i of a model without a scan."""
    roles, spec = {p.role for p in trained}, config.layers[i]
    done = [p for later in config.layers[i + 1 :] for p in parameters.of_layer(config, later) if p.role in roles]
    done += [p for p in trained if p.role == "head"]
    narrow = min(BYTES[config.param_dtype], BYTES[config.compute_dtype])
    visits = config.visits
    last = max(place for place, layer in enumerate(visits) if layer == i)
    each = [activations.kept_bytes(config, config.layer(layer), layout) for layer in visits]
    kept = sum(each[: last + 1]) + (_runs(config) - 1) * sum(each)
    return {
        "activations": kept
        + activations.in_flight_bytes(config, layout)
        + pictures.kept_bytes(config, layout, trained),
        "gradients": layout.stored(done) * narrow + _summed_gradients(config, layout, trained),
        **period.layer_bytes(config, spec, layout),
    }


def _at_update(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> dict[str, int]:
    return {"gradients": _gradient_bytes(config, layout, trained)}


def _in_encoder(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> list[dict[str, int]]:
    """The image encoder's layers: in the forward pass, before the text model has kept anything, and in the backward
    pass, when all other gradients are there."""
    if not layout.tiles:
        return []
    kept, work = pictures.kept_bytes(config, layout, trained), pictures.working_bytes(config, layout, trained)
    moments = [{"activations": kept, "gradients": _summed_gradients(config, layout, trained), "recomputed": work}]
    if any(p.role == "vision" for p in trained):
        moments.append({**moments[0], "gradients": _gradient_bytes(config, layout, trained)})
    return moments


def _runs(config: ModelConfig) -> int:
    """How often layers run in a forward pass of training whose values are kept: latent thoughts take passes before."""
    return 1 if config.latent is None else 1 + config.latent.passes_with_gradient


# ---- what they are made of -------------------------------------------------------------------------------------------


def _summed_gradients(config: ModelConfig, layout: Layout, trained: Iterable[Parameter]) -> int:
    """Bytes of the float32 sum over microbatches."""
    return layout.stored(trained) * BYTES["float32"] if layout.accumulation_steps > 1 else 0


def _gradient_bytes(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> int:
    """Bytes of all gradients. Those that a scan over periods collects have the parameters' dtype; others stay in the
    dtype of the products that made them until the update reads them."""
    scanned = [p for p in trained if period.is_scanned(p, config)]
    others = [p for p in trained if not period.is_scanned(p, config)]
    narrow = min(BYTES[config.param_dtype], BYTES[config.compute_dtype])
    each = layout.stored(scanned) * BYTES[config.param_dtype] + layout.stored(others) * narrow
    return each + _summed_gradients(config, layout, trained)


def _kept(config: ModelConfig, layout: Layout) -> int:
    """Bytes that all layers save on the device. A pipeline keeps them for every turn, and of each turn what enters its
    first stage and what a stage hands on; and in the end the result."""
    stacked = config.stack.num_stacked
    each = [activations.kept_bytes(config, config.layer(i), layout) * _runs(config) for i in config.visits]
    if layout.stages == 1:
        return sum(each)
    stream = layout.tokens // layout.stream_ways * config.hidden_size * BYTES[config.compute_dtype]
    turns = 2 * layout.turns / layout.microbatches + 1
    return int(sum(each[:stacked]) * layout.share + sum(each[stacked:]) + turns * stream)

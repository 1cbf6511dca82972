"""Bytes that a train step sends between devices."""

import dataclasses
from collections.abc import Iterable, Iterator

from maverick_jax import parameters
from maverick_jax.accounting.activations import repeats
from maverick_jax.accounting.attention import shares_keys
from maverick_jax.accounting.devices import Spans, spans
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.accounting.stream import moves
from maverick_jax.config import ModelConfig
from maverick_jax.ops.collectives import STAGE, stages
from maverick_jax.parameters import VISION_ROLES, Parameter, Role
from maverick_jax.saved import ATTENTION, EVERYTHING, RECEIVED, RESIDUAL
from maverick_jax.sharding import PIPELINE_AXIS, TENSOR_AXIS, Axes, axes_tuple, size_of

TPU_TILE = 8, 128
"""Rows and columns (lanes) of the tiles in which TPU programs store arrays."""
KINDS = ("gather", "reduce_scatter", "all_reduce", "all_to_all", "permute")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What one device sends in one optimizer step in collectives of one kind and one group of devices."""

    kind: str
    """One of `KINDS`."""
    spans: Spans
    """The devices that take part."""
    bytes: int
    """For ring algorithms."""
    times: int
    """Number of collectives."""


def communication(config: ModelConfig, layout: Layout, trained: Iterable[Parameter] | None = None) -> dict[str, int]:
    """Bytes that one device sends in one optimizer step, by kind of collective (`transfers`)."""
    return by_kind(transfers(config, layout, trained))


def by_kind(sent: Iterable[Transfer]) -> dict[str, int]:
    """Bytes by kind of collective."""
    found: dict[str, int] = {kind: 0 for kind in KINDS}
    for transfer in sent:
        found[transfer.kind] += transfer.bytes
    return found


def transfers(
    config: ModelConfig, layout: Layout, trained: Iterable[Parameter] | None = None, beside: Iterable[Parameter] = ()
) -> list[Transfer]:
    """All that one device sends in one optimizer step. `trained`: the parameters that have gradients; None: all.
    `beside`: others that are trained beside the model's.

    `gather`: weights before use, forward and backward, but the output matrix once, ids of tokens before the lookup of
    their embeddings, and positions of the residual stream; `reduce_scatter`: gradients of weights, in the compute
    dtype, and sums of blocks; `all_reduce`: gradients over replicas, in float32, and sums of blocks where the stream is
    not split; `all_to_all`: embeddings from the devices that hold their columns, and rows to their experts and back, in
    the forward and backward passes; `permute`: keys and values around the devices that share their rows, and what a
    stage of a pipeline hands to the next one, and the gradients of both.
    """
    with_pictures = lambda p: layout.tiles or p.role not in VISION_ROLES  # a batch of text does not use those
    used = [*filter(with_pictures, parameters.of_model(config))]
    trained = [*filter(with_pictures, used if trained is None else trained)]
    beside = [*beside]
    found = [*_weights(config, layout, used + beside, trained), *_gradients(config, layout, trained + beside)]
    found += [*_embedding(config, layout, trained), *_tokens(config, layout), *_rings(config, layout)]
    found += [*_partial_sums(config, layout), *_stages_of_pipeline(config, layout), *_features(config, layout, trained)]
    return [transfer for transfer in found if transfer.bytes]


def _weights(
    config: ModelConfig, layout: Layout, used: list[Parameter], trained: list[Parameter]
) -> Iterator[Transfer]:
    again = any(p.role == "vision" for p in trained)  # its layers; adapter and projector keep what they gathered
    for p in used:
        # the loss computes the gradient of its logits in its forward pass
        once = p.role == "head" or (p.role in VISION_ROLES and not (again and p.stacked))
        uses = 1 if once else 2
        times = uses * _runs(p, layout)
        sent = (layout.gathered(p.axes) - 1) * layout.held(p) * BYTES[config.compute_dtype]
        yield Transfer("gather", spans(_gathered_axes(p, layout), layout.sizes), times * sent, times * _own(p, layout))


def _gradients(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> Iterator[Transfer]:
    for p in trained:
        times = _runs(p, layout)
        held, n = layout.held(p), times * _own(p, layout)
        summed = _is_summed_whole(config, p, layout)
        for at, (group, sent) in enumerate(_stages(_gathered_axes(p, layout), layout)):
            # what is left of the output matrix at its last stage, which comes first here, has another layout
            kind, ways = ("all_reduce", 2) if summed and (at or p.role != "head") else ("reduce_scatter", 1)
            yield Transfer(kind, group, ways * times * sent * held * BYTES[config.compute_dtype], n)
        spread = {a for axis in p.axes if axis for a in axes_tuple(getattr(layout.rules, axis))}
        own = layout.stream_axes if p.role in ("norms", "router") else ()  # each device has them of its own positions
        replicas = tuple(a for a in (*_split(layout.rules.tokens, layout), *own) if a not in spread)
        copies = size_of(layout.sizes, replicas)
        summed = int(2 * times * (copies - 1) / copies * held * BYTES["float32"])
        yield Transfer("all_reduce", spans(replicas, layout.sizes), summed, n)


def _below(trained: list[Parameter]) -> set[Role]:
    """The roles of the image encoder through which no gradient passes, because nothing before them is trained."""
    roles = {p.role for p in trained}
    first = next((i for i, role in enumerate(VISION_ROLES) if role in roles), len(VISION_ROLES))
    return {*VISION_ROLES[:first]}


def _features(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> Iterator[Transfer]:
    """Devices that share rows put the features of all tiles into their own places; the gradients are added up."""
    if not layout.tiles or config.vision is None or _below(trained) == {*VISION_ROLES}:
        return
    axes, n = (*_split(layout.rules.length, layout), *layout.stream_axes), layout.accumulation_steps
    count = size_of(layout.sizes, axes)
    features = layout.own_tiles * config.vision.tokens_per_tile * config.hidden_size * BYTES[config.compute_dtype]
    yield Transfer("all_reduce", spans(axes, layout.sizes), 2 * n * features * (count - 1) // count, n)


def _is_summed_whole(config: ModelConfig, p: Parameter, layout: Layout) -> bool:
    """Whether devices get the whole sum of a gradient and take their shards from it: TPU programs lay the gradients of
    the output matrix and of attention's last projection out with the model's dimension along the lanes, from which
    they cut no shard that does not fill them."""
    if layout.platform != "tpu" or not (p.role == "head" or (p.role == "attention" and p.axes[-1] == "embed")):
        return False
    return config.hidden_size // layout.ways("embed") % TPU_TILE[1] != 0


def _stages(axes: tuple[str, ...], layout: Layout) -> Iterator[tuple[Spans, int]]:
    """(group of devices, shards that a device sends) of each stage in which gradients are added up over `axes`."""
    if size_of(layout.sizes, axes) <= STAGE:
        yield spans(axes, layout.sizes), size_of(layout.sizes, axes) - 1
        return
    shards = 1
    for axis in axes:
        ((size, apart),) = spans((axis,), layout.sizes)
        for ways, distance in stages(size):
            yield ((ways, apart * distance),), (ways - 1) * shards
            shards *= ways


def _embedding(config: ModelConfig, layout: Layout, trained: list[Parameter]) -> Iterator[Transfer]:
    """Devices that share the table's columns look up the rows of all their tokens, and exchange columns for tokens; if
    the table is trained, their gradients go back."""
    shared, passes = _split(layout.rules.table, layout), layout.accumulation_steps
    all_shared = tuple(a for a in shared if a in layout.rules.tokens)
    ids = passes * (size_of(layout.sizes, all_shared) - 1) * layout.tokens * BYTES["int32"]
    rows = layout.tokens * layout.ways("length") // layout.sequence_length
    summed = layout.platform == "tpu" and rows > 1 and rows % TPU_TILE[0]  # rows that fill no tile: a sum with zeros
    kind, ways = ("all_reduce", 2) if summed else ("gather", 1)
    yield Transfer(kind, spans(all_shared, layout.sizes), ways * ids, passes)
    times = passes * (1 + any(p.role == "embed" for p in trained))
    columns = layout.tokens * config.hidden_size * BYTES[config.compute_dtype]
    apart = layout.ways("table") // size_of(layout.sizes, all_shared)
    further = tuple(a for a in layout.stream_axes if a in shared)
    left = size_of(layout.sizes, further)
    for axes, held in (
        (layout.rules.length, columns // apart),
        (further, columns // left),
        (layout.rules.batch, columns // left),
    ):
        among = tuple(a for a in shared if a in axes_tuple(axes))
        n = size_of(layout.sizes, among)
        yield Transfer("all_to_all", spans(among, layout.sizes), times * held * (n - 1) // n, times)


def _tokens(config: ModelConfig, layout: Layout) -> Iterator[Transfer]:
    """Rows to the devices of their experts, as many as the first rounds have room for, and their results back; then
    gradients there and back. A layer that does not save the rows it received sends them again, but not their results.
    Of several experts, devices also say how many rows are for which. Devices that share rows tell each other the chosen
    experts of their tokens, to count them, if experts take a limited number."""
    stacked = config.layers[: config.stack.num_stacked]
    scanned = sum(spec.moe for spec in stacked)
    yield from _exchanges(config, layout.in_stage, scanned * layout.turns // layout.stages)
    yield from _exchanges(config, layout, config.num_moe_layers - scanned)


def _exchanges(config: ModelConfig, layout: Layout, layers: int) -> Iterator[Transfer]:
    """Of so many layers of experts in one forward pass."""
    layers *= layout.accumulation_steps
    room, devices = layout.exchange(config), layout.ways("experts")
    if layers and config.expert_capacity_factor is not None:
        # the products of a device that has all experts need the choice again, whatever it received
        n = layers + round(layers * repeats(config, RECEIVED if room else EVERYTHING, moe=True))
        chosen = (layout.ways("length") - 1) * layout.tokens * config.num_experts_per_tok * BYTES["int32"]
        yield Transfer("gather", spans(_split(layout.rules.length, layout), layout.sizes), n * chosen, n)
    if not layers or room is None:
        return
    group = spans(_split(layout.rules.experts, layout), layout.sizes)
    again = round(layers * repeats(config, RECEIVED, moe=True))
    rows, n = 4 * layers + again, layers + again
    each = (devices - 1) * room.total * config.hidden_size * BYTES[config.compute_dtype]
    yield Transfer("all_to_all", group, rows * each, rows * room.rounds)
    if (local := config.num_local_experts // devices) > 1:
        yield Transfer("all_to_all", group, n * (devices - 1) * local * BYTES["int32"], n)


def _rings(config: ModelConfig, layout: Layout) -> Iterator[Transfer]:
    """What `maverick_jax.ops.context` sends: keys and values in the forward pass, and in the backward pass again, with
    their gradients behind them. GPU programs begin a turn's transfers in the turn before: in the backward pass of a
    layer they send keys and values once more, and do not send the zeros that gradients begin with."""
    ways, times = layout.ways("length"), layout.accumulation_steps
    layers = [spec for spec in config.layers if shares_keys(config, spec, layout)]
    n, again = times * len(layers), times * sum(not config.saved(spec).has(ATTENTION) for spec in layers)
    held = layout.tokens * 2 * config.num_key_value_heads * config.head_dim // layout.ways("kv_heads")
    group = spans(_split(layout.rules.length, layout), layout.sizes)
    ahead = n if layout.platform == "gpu" else 0
    for turns, dtype in (
        ((2 * n + again) * (ways - 1) + ahead, config.compute_dtype),
        (n * (ways + 1) - ahead, "float32"),
    ):
        yield Transfer("permute", group, turns * held * BYTES[dtype], turns)


def _partial_sums(config: ModelConfig, layout: Layout) -> Iterator[Transfer]:
    tensor, stream = layout.sizes.get(TENSOR_AXIS, 1), moves(config, layout)
    if layout.stream_axes:
        group = spans(layout.stream_axes, layout.sizes)
        yield Transfer("gather", group, stream.gathered, stream.gathers)
        yield Transfer("reduce_scatter", group, stream.scattered, stream.scatters)
        return
    layers = config.num_hidden_layers * layout.accumulation_steps
    times = 4 * layers + round(layers * repeats(config, RESIDUAL))  # nothing reads a feed-forward network's output
    sent = 2 * times * _activation(config, layout) * (tensor - 1) // tensor
    if layout.stages > 1:
        passes, whole = layout.passes(config.stack)
        times, sent = round(times * passes), round(sent * whole)
    yield Transfer("all_reduce", spans((TENSOR_AXIS,), layout.sizes), sent, times)


def _stages_of_pipeline(config: ModelConfig, layout: Layout) -> Iterator[Transfer]:
    """In each turn a stage hands its microbatch on, and its gradient back. The result goes from the last stage to all,
    and the gradient of what enters the first stage is sent to all; both as sums with zeros."""
    if layout.stages == 1:
        return
    group, steps = spans((PIPELINE_AXIS,), layout.sizes), layout.accumulation_steps
    stream, turns = _activation(config, layout) // layout.stream_ways, 2 * steps * layout.turns
    yield Transfer("permute", group, turns * stream // layout.microbatches, turns)
    yield Transfer("all_reduce", group, 4 * steps * stream * (layout.stages - 1) // layout.stages, 2 * steps)


def _runs(p: Parameter, layout: Layout) -> int:
    """How often a step uses a parameter forward."""
    return layout.accumulation_steps * (layout.turns if p.in_stages else 1)


def _own(p: Parameter, layout: Layout) -> int:
    """The layers of a device that have such a parameter."""
    return (p.stacked or 1) // (layout.stages if p.in_stages else 1)


def _activation(config: ModelConfig, layout: Layout) -> int:
    """Bytes of the residual stream on one device in one forward pass."""
    return layout.tokens * config.hidden_size * BYTES[config.compute_dtype]


def _gathered_axes(p: Parameter, layout: Layout) -> tuple[str, ...]:
    """Mesh axes over which a parameter is gathered before use."""
    logical = [getattr(layout.rules, axis) for axis in p.axes if axis in layout.rules.GATHERED]
    return tuple(a for axes in logical for a in _split(axes, layout))


def _split(axes: Axes, layout: Layout) -> tuple[str, ...]:
    """Those of the mesh axes along which there are several devices."""
    return tuple(a for a in axes_tuple(axes) if layout.sizes.get(a, 1) > 1)

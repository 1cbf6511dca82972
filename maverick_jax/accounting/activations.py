"""What layers save for the backward pass, in bytes on one device and its host, and what the backward pass repeats."""

from maverick_jax.accounting import reasoning
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.saved import ATTENTION, EVERYTHING, INPUT, MLP, QKV, RECEIVED, RESIDUAL, ROUTER


def named_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> dict[str, int]:
    """Bytes of one layer's values on one device, by the name under which they can be saved (`maverick_jax.saved`)."""
    wide, element, tokens = BYTES["float32"], BYTES[config.compute_dtype], layout.tokens
    stream = tokens // layout.stream_ways * config.hidden_size * element
    heads = config.num_attention_heads // layout.ways("heads")
    kv = config.num_key_value_heads // layout.ways("kv_heads")
    more, more_kv = reasoning.qkv_heads(config, spec, layout)
    width = config.intermediate_size if spec.moe else config.intermediate_size_mlp
    found = {
        INPUT: stream,
        QKV: tokens * (heads + 2 * kv + more + more_kv) * config.head_dim * element,
        ATTENTION: tokens * (heads + more) * (config.head_dim * element + wide),
        RESIDUAL: stream,
        MLP: tokens * 2 * width * element // layout.ways("mlp"),
    }
    if spec.moe:
        found[ROUTER] = tokens // layout.stream_ways * config.num_local_experts * wide
        found[RECEIVED] = _received(config, layout) * config.hidden_size * element
    return found


def kept_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that one layer's forward pass saves on the device: the residual stream at its input, unless it is
    offloaded, and what `config.remat` keeps; never attention scores, which are fused or blocked."""
    saved = config.saved(spec)
    if EVERYTHING in saved.keep:
        return all_bytes(config, spec, layout) - sum(_of(saved.offload, config, spec, layout))
    return sum(_of((saved.keep | {INPUT}) - saved.offload, config, spec, layout))


def offloaded_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that one layer's forward pass moves to the host's memory, for one device."""
    return sum(_of(config.saved(spec).offload, config, spec, layout))


def host_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of host memory that one device's offloaded values take."""
    stacked = config.stack.num_stacked
    each = [offloaded_bytes(config, config.layer(i), layout) for i in config.visits]
    stacked += len(each) - config.num_hidden_layers
    return int(sum(each[:stacked]) * layout.share) + sum(each[stacked:])


def in_flight_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of offloaded values that are on the device at one time: those of a period, which compilers bring back while
    they compute another one."""
    return sum(offloaded_bytes(config, spec, layout.in_stage) for spec in config.layers[: len(config.period)])


def recomputed_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that the backward pass of one layer computes again or brings back from the host."""
    return all_bytes(config, spec, layout) - kept_bytes(config, spec, layout)


def recomputed_in_feed_forward(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Of `recomputed_bytes`, those that are no part of attention and its norm."""
    named, saved = named_bytes(config, spec, layout), config.saved(spec).keep | {INPUT}
    of_attention = 4 * named[INPUT] + 2 * named[QKV] + sum(named[n] for n in (INPUT, QKV, ATTENTION) if n not in saved)
    return max(0, recomputed_bytes(config, spec, layout) - of_attention)


def routed_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Of `all_bytes`, those of routed experts, and the rows sent to and from them."""
    if not spec.moe:
        return 0
    tokens = layout.tokens * config.num_experts_per_tok * BYTES[config.compute_dtype]
    return 5 * tokens * config.intermediate_size // layout.ways("expert_mlp") + 4 * tokens * config.hidden_size


def all_bytes(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of all of one layer's values: those that have names, norms with their float32 inputs, heads rotated in
    float32, hidden units after their activation, those of routed experts, and rows sent to and from experts."""
    named = named_bytes(config, spec, layout)
    beside = 8 * named[INPUT] + 2 * named[QKV] + 3 * named[MLP] // 2 + routed_bytes(config, spec, layout)
    return beside + sum(named.values())


def repeats(config: ModelConfig, name: str, *, moe: bool | None = None) -> float:
    """The share of layers, of those that have experts or have none if `moe` says so, whose backward pass computes the
    values of this name again."""
    layers = [spec for spec in config.layers if moe in (None, spec.moe)]
    return sum(not config.saved(spec).has(name) for spec in layers) / len(layers) if layers else 0.0


def _of(names, config: ModelConfig, spec: LayerSpec, layout: Layout) -> list[int]:
    return [n for name, n in named_bytes(config, spec, layout).items() if name in names]


def _received(config: ModelConfig, layout: Layout) -> int:
    """Rows that a device has room for when others send it theirs; 0: it has all experts."""
    room = layout.exchange(config)
    return room.total * layout.ways("experts") if room else 0

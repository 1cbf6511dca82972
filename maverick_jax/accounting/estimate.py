"""How long a train step takes, in closed form: matrix products, memory traffic and communication at the rates of
`accounting.devices`. docs/scaling.md compares it with the rooflines of compiled steps."""

import dataclasses
import math
from collections.abc import Callable, Iterable

from maverick_jax.accounting import attention, experts, pictures
from maverick_jax.accounting.activations import host_bytes, repeats
from maverick_jax.accounting.communication import Transfer
from maverick_jax.accounting.devices import Device, Pattern
from maverick_jax.accounting.flops import NOTHING, attended_keys, flops_per_token
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.parameters import Parameter
from maverick_jax.saved import ATTENTION, MLP, QKV, RESIDUAL, ROUTER

RESIDUAL_PASSES, HIDDEN_PASSES, ROW_PASSES = 35, 14, 25
"""How often a layer's operations other than products read or write, forward and backward, an array of the size of the
residual stream, of the feed-forward network's hidden units, and of the rows sent to experts: read off a step compiled
for 512 H200."""
PATTERNS: dict[str, Pattern] = {"all_reduce": "reduce", "all_to_all": "exchange", "permute": "shift"}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step on one device."""

    flops: float
    """FLOPs of matrix products, repeated ones and a pipeline's bubble included; not seconds."""
    products: float
    """Of matrix products, repeated ones included."""
    traffic: float
    """Of memory traffic beside the products."""
    wire: dict[str, float]
    """Of all collectives, one after the other, by their kind, and of copies to and from the host (`host`)."""
    exposed: float
    """Of collectives that nothing hides: all on TPUs; else one round of exchanges, for which the layer waits, and of
    the others, and of the host's copies, what is longer than the computation."""

    @property
    def compute(self) -> float:
        return self.products + self.traffic

    @property
    def step(self) -> float:
        return self.compute + self.exposed


def estimate(
    config: ModelConfig,
    layout: Layout,
    device: Device,
    flops: float,
    sent: Iterable[Transfer],
    *,
    trained: list[Parameter],
    state_bytes: Callable[[Parameter], int],
    update_flops: float = 0.0,
) -> Estimate:
    """Of a step that does `flops` useful FLOPs on a device, `update_flops` in the optimizer's update, and sends `sent`;
    the rest as for `memory`."""
    busy = layout.turns / layout.microbatches
    done = (flops + repeated_flops(config, layout, trained) / layout.stages) * busy + _every_stage(config, layout)
    done += update_flops + pictures.repeated_flops(config, layout, trained)
    slow = (attention.pace(config, layout) - 1) * _score_flops(config, layout)
    slow += (experts.pace(config, layout) - 1) * _expert_flops(config, layout, trained)
    slow *= layout.share
    products = (done + slow) / device.matrix_rate
    traffic = memory_traffic(config, layout, trained=trained, state_bytes=state_bytes) / device.memory_rate
    wire: dict[str, float] = {}
    for transfer in sent:
        count, near = math.prod(size for size, _ in transfer.spans), device.near(transfer.spans)
        each = transfer.bytes / transfer.times
        seconds = device.seconds_to_send(each, count, near, PATTERNS.get(transfer.kind, "ring"))
        wire[transfer.kind] = wire.get(transfer.kind, 0.0) + transfer.times * seconds
    room = layout.exchange(config)
    waiting = wire.get("all_to_all", 0.0) / (room.rounds if room else 1)
    hidden = sum(wire.values()) - wire.get("all_to_all", 0.0)
    if layout.platform == "tpu":  # whose compiler, unless asked, begins no other work before a collective has ended
        waiting, hidden = sum(wire.values()), 0.0
    if moved := 2 * layout.accumulation_steps * host_bytes(config, layout):
        wire["host"] = moved / device.host_rate
    longer = [max(0.0, seconds - products - traffic) for seconds in (hidden, wire.get("host", 0.0))]
    return Estimate(done, products, traffic, wire, waiting + sum(longer))


def _every_stage(config: ModelConfig, layout: Layout) -> float:
    """FLOPs of a device in a step for the output matrix that every stage of a pipeline computes, beyond its share."""
    head = 3 * flops_per_token(config, layout.sequence_length, NOTHING)["head"]
    return head * layout.tokens * layout.accumulation_steps / layout.ways("vocab") * (1 - 1 / layout.stages)


def repeated_flops(config: ModelConfig, layout: Layout, trained: Iterable[Parameter] | None = None) -> float:
    """FLOPs of a device in a step beyond the useful ones: what the backward pass computes again, scores that the mask
    forbids, and unused slots of the exchange. `trained`: the parameters that have gradients; None: all.

    Attention repeats its scores at least once, a half of its forward pass. The backward pass needs no output of a
    feed-forward network: it repeats two of three products, those of routed experts whatever `config.remat` says, and
    the rest as far as layers do not save their results.
    """
    forward = flops_per_token(config, layout.sequence_length, NOTHING)
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    outputs = queries / (2 * (queries + keys))  # the share of attention's last projection in all
    again = (1 - outputs) * repeats(config, QKV) + outputs * repeats(config, RESIDUAL)
    found = forward["attention_projections"] * again
    found += forward["router"] * repeats(config, ROUTER, moe=True)
    for part, moe in (("dense", False), ("shared_experts", True)):
        found += 2 / 3 * forward[part] * repeats(config, MLP, moe=moe)
    found -= _passes(trained) * forward["routed_experts"] + 3 * forward["attention_scores"]
    tokens = layout.tokens * layout.accumulation_steps / layout.ways("mlp")
    return found * tokens + _expert_flops(config, layout, trained) + _score_flops(config, layout)


def _expert_flops(config: ModelConfig, layout: Layout, trained: Iterable[Parameter] | None) -> float:
    """FLOPs of a device in a step for routed experts, forward and backward, repeated and unused ones included."""
    room, rows = layout.exchange(config), layout.tokens * config.num_experts_per_tok
    several = config.num_local_experts > layout.ways("experts")
    in_tiles = several and not experts.are_grouped(config, layout)  # tiles hold real rows alone
    slots = room.total * layout.ways("experts") / rows if room and not in_tiles else 1.0
    forward = flops_per_token(config, layout.sequence_length, NOTHING)["routed_experts"]
    passes = _passes(trained) + 2 / 3
    return passes * slots * forward * layout.tokens * layout.accumulation_steps / layout.ways("mlp")


def _passes(trained: Iterable[Parameter] | None) -> int:
    """Of the routed experts' products, by what they are useful for: results, and gradients of inputs and weights."""
    return 2 + (trained is None or any(p.role == "experts" for p in trained))


def _score_flops(config: ModelConfig, layout: Layout) -> float:
    """FLOPs of a device in a step for scores and their use, forward and backward, repeated ones included."""
    forward = flops_per_token(config, layout.sequence_length, NOTHING)["attention_scores"]
    rows = layout.tokens / layout.sequence_length
    allowed = rows * sum(attended_keys(config, spec, layout.sequence_length) for spec in config.layers)
    passes = lambda spec: attention.products(config, layout) / 2 + (not config.saved(spec).has(ATTENTION))
    done = sum(passes(spec) * attention.computed_scores(config, spec, layout) for spec in config.layers)
    return done / allowed * forward * layout.tokens * layout.accumulation_steps / layout.ways("mlp")


def memory_traffic(
    config: ModelConfig, layout: Layout, *, trained: list[Parameter], state_bytes: Callable[[Parameter], int]
) -> float:
    """Bytes that a device reads and writes in a step beside its matrix products: in layers, for saved activations, and
    in the update, which reads the gradients twice, for their norm too, and reads and writes weights and state."""
    element, k, D = BYTES[config.compute_dtype], config.num_experts_per_tok, config.hidden_size
    found = 0.0
    for spec in config.layers:
        dense = config.intermediate_size_mlp / layout.ways("mlp")
        routed = config.intermediate_size * (1 / layout.ways("mlp") + k / layout.ways("expert_mlp"))
        widths = RESIDUAL_PASSES * D + HIDDEN_PASSES * (routed if spec.moe else dense) + ROW_PASSES * k * D * spec.moe
        found += widths * layout.tokens * element + attention.score_traffic(config, spec, layout)
    found *= layout.accumulation_steps * layout.share
    weight = BYTES[config.param_dtype]
    return found + sum(layout.stored([p]) * (4 * weight + 2 * state_bytes(p)) for p in trained)

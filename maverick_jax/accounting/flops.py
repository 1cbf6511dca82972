"""FLOPs per token of a step, counted from what it computes.

A matrix product with n active weights takes 2n FLOPs forward; backward 2n for the gradient of its input, if something
below it is trained, and 2n for the gradient of its weights, if they are trained. So a model that is trained as a whole
takes 6 per active weight, as in published Llama 4 figures, and frozen weights take 4, or 2 below all that is trained.
Attention scores count for the keys that the mask allows. Lookups in the embedding table, norms and activations are not
counted, nor is recomputation in the backward pass. Tiles count as many as rows have room for, padding included.
"""

import collections
import dataclasses
from collections.abc import Collection

from maverick_jax import parameters
from maverick_jax.accounting import pictures, reasoning
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.parameters import TEXT_ROLES, VISION_ROLES, Parameter, Role
from maverick_jax.stack import PERIODS, Slot

PARTS: dict[Role, str] = {
    "attention": "attention_projections",
    "mlp": "dense",
    "shared": "shared_experts",
    "experts": "routed_experts",
    "router": "router",
    "head": "head",
    "reasoning": "reasoning_heads",
}
"""The name of a part of the model in counts, by the role of its weights."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What of a model a step trains."""

    roles: Collection[Role] = TEXT_ROLES
    """Parameters that are trained, by role. Empty and no adapters: a forward pass only."""
    expert_layers: Collection[int] | None = None
    """The layers, from 0, in which some routed experts are trained; None: all, if `roles` has experts."""
    adapters: Collection[Role] = ()
    """Parameters that have low-rank adapters, by role."""
    rank: int = 0
    """Rank of the adapters."""

    def weights(self, role: Role, slot: Slot | None) -> bool:
        """Whether weights of the role have a gradient. In a stack of layers, all of them have one if one has. Routed
        experts with adapters have one too: it is what the gradients of their factors are made of."""
        if role == "experts" and slot is not None and self.expert_layers is not None:
            return role in self.roles and any(layer in self.expert_layers for layer in slot.layers)
        return role in self.roles or (role == "experts" and role in self.adapters)

    def any_of(self, role: Role, slot: Slot | None = None) -> bool:
        """Whether parameters of the role, or adapters of theirs, are trained."""
        return self.weights(role, slot) or role in self.adapters


EVERYTHING = Trained()
NOTHING = Trained(roles=())


def attended_keys(config: ModelConfig, spec: LayerSpec, sequence_length: int) -> int:
    """Query-key pairs that a layer's mask allows in a row of one segment."""
    T, reach = sequence_length, config.attention_chunk_size
    if not spec.rope or reach is None or reach >= T:
        return T * (T + 1) // 2
    if config.local_attention == "sliding_window":
        return reach * (reach + 1) // 2 + (T - reach) * reach
    rest = T % reach
    return (T // reach) * (reach * (reach + 1) // 2) + rest * (rest + 1) // 2


def flops_per_token(
    config: ModelConfig,
    sequence_length: int,
    trained: Trained = EVERYTHING,
    microbatch_tokens: int | None = None,
    tiles: int = 0,
) -> dict[str, float]:
    """FLOPs of a step per token, by part of the model, in rows of `sequence_length` tokens.

    microbatch_tokens: tokens, in the whole job, for which the adapters of routed experts are merged into their weights
    once; needed only if there are such adapters. tiles: of pictures, in each row.
    """
    count = _Count(config, sequence_length, trained, microbatch_tokens)
    of_pictures = [role for role in VISION_ROLES if tiles and trained.any_of(role)]
    flows = trained.any_of("embed") or bool(of_pictures)
    # the body of a scan is one program for all periods: a gradient passes through each, or through none; XLA runs a
    # single period without a loop
    scanned = [slot for slot in config.stack.slots if slot.run == PERIODS and config.num_periods > 1]
    flows = flows or any(trained.any_of(role, slot) for slot in scanned for role in _roles(config, slot))
    for slot in config.stack.slots:
        flows = count.layer(slot, flows)
    head = next(p for p in parameters.output(config) if p.role == "head")
    count.product(head, None, flows or trained.any_of("norms"))
    parts = [part for role, part in PARTS.items() if role != "reasoning" or config.reasoning_heads]
    found = {part: float(count.found[part]) for part in (*parts, "attention_scores", "adapters")}
    if tiles:
        each = pictures.flops_per_tile(config, of_pictures)
        found |= {part: flops * tiles / sequence_length for part, flops in each.items()}
    return found


def latent_flops_per_token(config: ModelConfig, sequence_length: int, trained: Trained = EVERYTHING) -> float:
    """FLOPs of a step per token for the passes that compute latent thoughts, beside the pass whose output counts: all
    layers, and the feedback. Those that no gradient goes through are forward passes alone."""
    if (latent := config.latent) is None:
        return 0.0
    feedback = 2 * config.hidden_size**2

    def one(trained: Trained) -> float:
        counts = flops_per_token(config, sequence_length, trained, 1)
        adapters = {"adapters": 0.0, "head": 0.0}  # merged once for all passes; computed once
        return sum((counts | adapters).values())

    learns, with_gradient = trained.any_of("latent"), latent.passes_with_gradient if trained.roles else 0
    forward = (latent.passes - with_gradient) * (one(NOTHING) + feedback)
    return forward + with_gradient * (one(trained) + (2 + learns) * feedback)


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one token's forward and backward pass if the whole model is trained."""
    return sum(flops_per_token(config, sequence_length).values())


def forward_flops_per_token(config: ModelConfig, sequence_length: int, tiles: int = 0) -> float:
    """FLOPs of one token's forward pass, logits and its share of a row's `tiles` included."""
    return sum(flops_per_token(config, sequence_length, NOTHING, tiles=tiles).values())


def _roles(config: ModelConfig, slot: Slot) -> set[Role]:
    return {p.role for p in parameters.of_layer(config, config.layer(slot.layers[0]))}


class _Count:
    """Sums of FLOPs per token by part, while the layers are visited in their order."""

    def __init__(self, config: ModelConfig, sequence_length: int, trained: Trained, microbatch_tokens: int | None):
        self.config, self.length, self.trained, self.tokens = config, sequence_length, trained, microbatch_tokens
        self.found: collections.Counter[str] = collections.Counter()

    def layer(self, slot: Slot, flows: bool) -> bool:
        """Count the layers of a slot. `flows`: whether a gradient passes through their input. Returns whether one
        passes through their output."""
        spec, trained = self.config.layer(slot.layers[0]), self.trained
        table = parameters.of_layer(self.config, spec)
        normed = flows or trained.any_of("norms")
        inside = normed or trained.any_of("attention") or trained.any_of("reasoning")
        self._block([p for p in table if p.role == "attention"], slot, normed)
        self._block([p for p in table if p.role == "reasoning"], slot, normed)
        width = self.config.num_attention_heads * self.config.head_dim
        pairs = width * attended_keys(self.config, spec, self.length) * self._runs(slot)
        pairs += reasoning.score_width(self.config, spec, self.length) * self.length * self._runs(slot)
        self.found["attention_scores"] += (12 if inside else 4) * pairs / self.length
        flows, normed = inside, inside or trained.any_of("norms")
        for role in ("mlp", "shared", "router", "experts"):
            block = [p for p in table if p.role == role]
            # the router's scores scale what the routed experts read
            scaled = role == "experts" and trained.any_of("router")
            self._block(block, slot, normed or scaled)
            flows = flows or normed or (bool(block) and trained.any_of(role, slot))
        return flows

    def _block(self, block: list[Parameter], slot: Slot, flows: bool) -> None:
        """The matrices of one role in a layer: those that write to the residual stream read what the others made."""
        for p in block:
            inner = p.init in ("residual", "zeros") and self.trained.any_of(p.role, slot)
            self.product(p, slot, flows or inner)

    def product(self, p: Parameter, slot: Slot | None, flows: bool) -> None:
        """The product with a parameter in every layer of a slot. `flows`: whether its input needs a gradient."""
        if len(p.shape) < 2:
            return
        layers = self._runs(slot)
        factor = 2 + 2 * flows + 2 * self.trained.weights(p.role, slot)
        self.found[PARTS[p.role]] += factor * layers * parameters.active(p, self.config)
        if p.role in self.trained.adapters:
            self.found["adapters"] += layers * self._adapter(p, flows)

    def _runs(self, slot: Slot | None) -> float:
        return reasoning.runs_of(self.config, slot, trained=bool(self.trained.roles or self.trained.adapters))

    def _adapter(self, p: Parameter, flows: bool) -> float:
        """FLOPs per token of one layer's adapter of a matrix, forward and backward."""
        rank = self.trained.rank
        if p.role == "experts":  # A B is added to the weights of all experts, once for each microbatch
            assert self.tokens is not None, "adapters of routed experts need the number of tokens of a microbatch"
            return 6 * rank * p.size / self.tokens
        fan_in = 1
        for size in p.shape[: p.inputs]:
            fan_in *= size
        first, second = fan_in * rank, rank * (p.size // fan_in)
        return (4 + 2 * flows) * first + 6 * second

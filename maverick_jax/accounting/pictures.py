"""What the image encoder costs in a train step: FLOPs of a tile, what stays for the backward pass, what that repeats.

A tile passes through the encoder's layers as Q = patches + 1 positions, and through adapter and projector as P. Below
all that is trained there is no backward pass: a frozen encoder computes its results once and keeps nothing.
"""

import dataclasses
from collections.abc import Iterable

from maverick_jax import parameters
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import VisionConfig
from maverick_jax.parameters import VISION_ROLES, Parameter, Role
from maverick_jax.saved import ATTENTION, EVERYTHING, MLP, QKV, RESIDUAL

PARTS: dict[Role, str] = {
    "vision": "vision_encoder",
    "adapter": "vision_adapter",
    "projector": "vision_projector",
}
"""Names in counts."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of the encoder."""

    parameter: Parameter
    positions: int
    """Of one tile, in each layer."""

    @property
    def flops(self) -> float:
        """Of one tile's forward pass, in all layers."""
        return 2.0 * self.parameter.size * self.positions


def products(config: ModelConfig) -> list[Product]:
    """All matrix products, in the order of the forward pass."""
    vision = _vision(config)
    Q, P = vision.grid**2 + 1, vision.tokens_per_tile
    found = []
    for p in parameters.of_vision(config):
        name = p.name.rpartition("/")[2]
        if name == "patch":
            found.append(Product(p, Q - 1))
        elif p.role != "vision":
            found.append(Product(p, P))
        elif p.stacked and len(p.shape) > 1 and not name.endswith("_bias"):
            found.append(Product(p, Q))
    return found


def score_flops(config: ModelConfig) -> float:
    """FLOPs of one tile's attention scores and their use, forward, in all layers."""
    vision = _vision(config)
    return 4.0 * vision.hidden_size * (vision.grid**2 + 1) ** 2 * vision.num_hidden_layers


def flops_per_tile(config: ModelConfig, trained: Iterable[Role]) -> dict[str, float]:
    """FLOPs of a step for one tile, by part, if parameters of these roles are trained, or low-rank adapters of theirs:
    those are added to the weights, and made of the gradient of the sum."""
    weights = {*trained}
    found = dict.fromkeys(PARTS.values(), 0.0)
    flows = False
    for product in products(config):
        role = product.parameter.role
        found[PARTS[role]] += product.flops * (1 + flows + (role in weights))
        flows = flows or role in weights
    found[PARTS["vision"]] += score_flops(config) * (3 if "vision" in weights else 1)
    return found


def repeated_flops(config: ModelConfig, layout: Layout, trained: Iterable[Parameter]) -> float:
    """FLOPs of a device in a step for its tiles beyond the useful ones: what the backward pass computes again, and what
    devices that share rows, the stages of a pipeline, or devices that share tensors all compute."""
    if not layout.tiles:
        return 0.0
    roles = {p.role for p in trained} & {*VISION_ROLES}
    useful, split = flops_per_tile(config, roles), layout.ways("mlp")
    whole = [p.flops for p in products(config) if p.parameter.name.rpartition("/")[2] in ("patch", "projector")]
    alike = layout.ways("length") * layout.stages
    found = sum(useful.values()) / split * (1 - 1 / alike) + sum(whole) * (1 - 1 / split)
    if "vision" in roles:
        saved = config.saved(None)
        kept = {"q": QKV, "k": QKV, "v": QKV, "o": RESIDUAL, "fc1": MLP}
        of = {p.parameter.name.rpartition("/")[2]: p.flops for p in products(config)}
        found += sum(of[name] for name, value in kept.items() if not saved.has(value)) / split
        found += score_flops(config) * (0.5 + (not saved.has(ATTENTION))) / split
    return found * layout.own_tiles * layout.accumulation_steps


# ---- memory ----------------------------------------------------------------------------------------------------------


def tile_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of the tiles of a batch on one device, uint8."""
    if not layout.tiles:
        return 0
    vision = _vision(config)
    return layout.own_tiles * layout.accumulation_steps * vision.num_channels * vision.image_size**2


def kept_bytes(config: ModelConfig, layout: Layout, trained: Iterable[Parameter]) -> int:
    """Bytes that the encoder's forward pass saves on one device: of trained layers, their inputs and what
    `config.remat` keeps; of adapter and projector, the operands of their gradients; nothing of what is frozen below all
    that is trained."""
    roles = {p.role for p in trained} & {*VISION_ROLES}
    if not layout.tiles or not roles:
        return 0
    vision, element = _vision(config), BYTES[config.compute_dtype]
    P, A = vision.tokens_per_tile, vision.vision_output_dim
    found = P * A * element  # the projector's input
    if roles != {"projector"}:
        found += P * (vision.intermediate_size + 3 * A // layout.ways("mlp") + A) * element
    if "vision" in roles:
        named, saved = named_bytes(config, layout), config.saved(None)
        each = all_bytes(config, layout) if EVERYTHING in saved.keep else sum(
            n for name, n in named.items() if name in saved.keep
        )  # fmt: skip
        stream = (vision.grid**2 + 1) * vision.hidden_size * element
        found += vision.num_hidden_layers * (stream + each) + 2 * stream
    ends = [p for p in parameters.of_vision(config) if p.role in (roles | {"projector"}) - {"vision"}]
    return found * layout.own_tiles + layout.used(ends) * element  # with the weights that they gathered


def named_bytes(config: ModelConfig, layout: Layout) -> dict[str, int]:
    """Bytes of one layer's values of one tile on one device, by the name under which they can be saved."""
    vision, element = _vision(config), BYTES[config.compute_dtype]
    Q, W, heads = vision.grid**2 + 1, vision.hidden_size, layout.ways("heads")
    return {
        QKV: 3 * Q * W * element // heads,
        ATTENTION: Q * W * element // heads,
        RESIDUAL: Q * W * element,
        MLP: Q * vision.intermediate_size * element // layout.ways("mlp"),
    }


def all_bytes(config: ModelConfig, layout: Layout) -> int:
    """Bytes of all of one layer's values of one tile on one device: those that have names, norms with their float32
    inputs, heads rotated in float32, hidden units after the activation with their float32 inputs, and scores."""
    vision, named = _vision(config), named_bytes(config, layout)
    scores = vision.num_attention_heads // layout.ways("heads") * (vision.grid**2 + 1) ** 2 * BYTES["float32"]
    return sum(named.values()) + 8 * named[RESIDUAL] + 2 * named[QKV] + 4 * named[MLP] + 2 * scores


def working_bytes(config: ModelConfig, layout: Layout, trained: Iterable[Parameter]) -> int:
    """Bytes of one layer while it is computed, in its backward pass if it is trained, with its weights as they are used
    and their gradients."""
    layer = [p for p in parameters.of_vision(config) if p.stacked]
    weights = layout.used(layer) // (layer[0].stacked or 1) * BYTES[config.compute_dtype]
    passes = 2 if any(p.role == "vision" for p in trained) else 1
    return all_bytes(config, layout) * layout.own_tiles * passes + weights * passes


def _vision(config: ModelConfig) -> VisionConfig:
    assert config.vision is not None, "the model has no image encoder"
    return config.vision

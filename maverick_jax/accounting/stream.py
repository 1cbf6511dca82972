"""What a train step sends because blocks work on more positions than the residual stream holds (`ops.stream`)."""

from typing import NamedTuple

from maverick_jax.accounting.activations import repeats
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.saved import EVERYTHING, RECEIVED, RESIDUAL


class Moves(NamedTuple):
    """Transfers of activations over the devices that split the residual stream further, in one optimizer step. All zero
    where nothing does."""

    gathers: int
    """All-gathers of positions: at the beginning of each block in the forward pass and again in the backward pass, of
    the cotangents at its end, and once for the loss."""
    scatters: int
    """Reduce-scatters of sums: at the end of each block, of the cotangents at its beginning, and once for the loss. The
    backward pass repeats that of attention unless the layer saves the stream after it."""
    gathered: int
    """Bytes that one device sends in the all-gathers, for ring algorithms."""
    scattered: int
    """Bytes that one device sends in the reduce-scatters."""


def moves(config: ModelConfig, layout: Layout) -> Moves:
    """Of a step of a batch of text."""
    n, passes, element = layout.stream_ways, layout.accumulation_steps, BYTES[config.compute_dtype]
    if n == 1:
        return Moves(0, 0, 0, 0)
    layers = config.num_hidden_layers
    gathers, scatters = 6 * layers, 4 * layers + round(layers * repeats(config, RESIDUAL))
    runs, whole = layout.passes(config.stack)
    share = passes * layout.tokens * (n - 1) // n
    # scores and indices of the chosen experts go along with the positions, the scores' gradients with the cotangents
    routed = config.num_moe_layers * config.num_experts_per_tok
    scores, indices = (1 + repeats(config, name, moe=True) for name in (EVERYTHING, RECEIVED))
    chosen = round(routed * (scores * element + indices * BYTES["int32"]))
    return Moves(
        passes * (round(gathers * runs) + 1),
        passes * (round(scatters * runs) + 1),
        share * ((round(gathers * whole) + 1) * config.hidden_size * element + round(chosen * whole)),
        share * ((round(scatters * whole) + 1) * config.hidden_size + round(routed * whole)) * element,
    )

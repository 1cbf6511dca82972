"""What attention computes, moves and holds beyond what its mask asks for, by how it is computed."""

from maverick_jax.accounting.devices import MATRIX_SHARE
from maverick_jax.accounting.flops import attended_keys
from maverick_jax.accounting.fused import SHARES
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.ops.attention.blocked import MAX_BLOCKS, MIN_BLOCK

SCORE_TRAFFIC = 40
"""Bytes that blocked attention moves for each score, forward and backward, beside its products: float32 scores are
written to memory and read several times. Read off a step compiled for 512 H200."""


def is_fused(config: ModelConfig, layout: Layout) -> bool:
    """Whether one kernel computes attention without scores in memory: on GPUs, here all Hopper or newer."""
    return layout.platform == "gpu" and BYTES[config.compute_dtype] == 2


def computed_scores(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Query-key pairs of one layer and head on one device for which scores are computed: those that a mask allows, if
    attention is fused; else each block of queries with all keys that any of its queries can see."""
    T = layout.sequence_length // layout.ways("length")
    if is_fused(config, layout):
        return layout.tokens * attended_keys(config, spec, T) // T
    reach = config.attention_chunk_size if spec.rope else None
    block, pairs = max(MIN_BLOCK, -(-T // MAX_BLOCKS)), 0
    for start in range(0, T, block):
        stop = min(start + block, T)
        pairs += (stop - start) * (stop - (0 if reach is None else max(0, start - reach + 1)))
    return layout.tokens * pairs // T


def pace(config: ModelConfig, layout: Layout) -> float:
    """Time of a FLOP of scores, divided by that of other products. Of a fused kernel's, two sevenths are forward."""
    forward, backward = SHARES.values()
    return MATRIX_SHARE * (2 / forward + 5 / backward) / 7 if is_fused(config, layout) else 1.0


def score_traffic(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that one layer's scores move through memory in a step."""
    if is_fused(config, layout):
        return 0
    return SCORE_TRAFFIC * _heads(config, layout) * computed_scores(config, spec, layout)


def working_set(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the float32 scores of all blocks of queries of one layer: compilers compute the blocks beside each
    other. Fused attention has none; its backward pass sums gradients of queries in float32."""
    width = config.head_dim * layout.tokens if is_fused(config, layout) else computed_scores(config, spec, layout)
    return BYTES["float32"] * _heads(config, layout) * width


def _heads(config: ModelConfig, layout: Layout) -> int:
    return config.num_attention_heads // layout.ways("heads")

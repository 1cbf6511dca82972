"""What attention computes, moves and holds beyond what its mask asks for, by how it is computed."""

from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.ops.attention import MAX_BLOCKS, MIN_BLOCK

SCORE_TRAFFIC = 40
"""Bytes that blocked attention moves for each score, forward and backward, beside its products: float32 scores are
written to memory and read several times. Read off a step compiled for 512 H200."""


def computed_scores(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Query-key pairs of one layer and head on one device for which scores are computed: each block of queries with
    all keys that any of its queries can see."""
    T = layout.sequence_length // layout.ways("length")
    reach = config.attention_chunk_size if spec.rope else None
    block, pairs = max(MIN_BLOCK, -(-T // MAX_BLOCKS)), 0
    for start in range(0, T, block):
        stop = min(start + block, T)
        pairs += (stop - start) * (stop - (0 if reach is None else max(0, start - reach + 1)))
    return layout.tokens * pairs // T


def score_traffic(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that one layer's scores move through memory in a step."""
    return SCORE_TRAFFIC * _heads(config, layout) * computed_scores(config, spec, layout)


def working_set(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the float32 scores of all blocks of queries of one layer: compilers compute the blocks beside each
    other."""
    return BYTES["float32"] * _heads(config, layout) * computed_scores(config, spec, layout)


def _heads(config: ModelConfig, layout: Layout) -> int:
    return config.num_attention_heads // layout.ways("heads")

"""What attention computes, moves and holds beyond what its mask asks for, by how it is computed."""

from maverick_jax.accounting.devices import MATRIX_SHARE
from maverick_jax.accounting.flops import attended_keys
from maverick_jax.accounting.fused import CUDNN, SHARES, SPLASH
from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.ops.attention import MaskSpec, splash
from maverick_jax.ops.attention.blocked import MAX_BLOCKS, MIN_BLOCK
from maverick_jax.ops.attention.spec import AttentionCase
from maverick_jax.ops.context import TILE

SCORE_TRAFFIC = 40
"""Bytes that blocked attention moves for each score, forward and backward, beside its products: float32 scores are
written to memory and read several times. Read off a step compiled for 512 H200."""


def is_fused(config: ModelConfig, layout: Layout) -> bool:
    """Whether kernels compute attention without scores in memory: on GPUs, here all Hopper or newer, and on TPUs."""
    if layout.platform == "tpu":
        rows, T = layout.tokens // layout.sequence_length, layout.sequence_length // layout.ways("length")
        heads = _heads(config, layout), config.num_key_value_heads // layout.ways("kv_heads")
        case = AttentionCase(MaskSpec(), True, rows, T, *heads, config.head_dim, config.compute_dtype)
        return splash.why_not(case) is None
    return layout.platform == "gpu" and BYTES[config.compute_dtype] == 2


def products(config: ModelConfig, layout: Layout) -> int:
    """Matrix products over all scores, forward and backward, of which two are forward."""
    return sum((SPLASH if layout.platform == "tpu" and is_fused(config, layout) else CUDNN).values())


def shares_keys(config: ModelConfig, spec: LayerSpec, layout: Layout) -> bool:
    """Whether the devices that share a row pass on a layer's keys (`maverick_jax.ops.context`)."""
    chunked = spec.rope and config.attention_chunk_size is not None and config.local_attention == "chunked"
    return layout.ways("length") > 1 and not chunked


def computed_scores(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Query-key pairs of one layer and head on one device for which scores are computed: by cuDNN those that a mask
    allows, else those of all keys, or of their blocks or tiles, that any query of a block or tile can see."""
    if shares_keys(config, spec, layout):
        T = layout.sequence_length
        tile = min(TILE, T // layout.ways("length"))
        return layout.tokens * (attended_keys(config, spec, T) + T * (tile - 1) // 2) // T
    T = layout.sequence_length // layout.ways("length")
    fused = is_fused(config, layout)
    if fused and layout.platform == "gpu":
        return layout.tokens * attended_keys(config, spec, T) // T
    reach = config.attention_chunk_size if spec.rope else None
    block, keys = splash.blocks_of(T) if fused else (max(MIN_BLOCK, -(-T // MAX_BLOCKS)), 1)
    pairs = 0
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if reach is None else max(0, start - reach + 1)
        pairs += (stop - start) * (-(-stop // keys) - first // keys) * keys
    return layout.tokens * pairs // T


def seen_share(config: ModelConfig, layout: Layout, scope: str) -> float | None:
    """Of the pairs of tiles in a row of one segment, the part in which a query sees a key, in layers whose attention
    has this scope and whose rows several devices share; None: there are none."""
    for spec in config.layers:
        local = spec.rope and config.attention_chunk_size is not None
        if (config.local_attention if local else "global") == scope and shares_keys(config, spec, layout):
            return computed_scores(config, spec, layout) / (layout.tokens * layout.sequence_length)
    return None


def pace(config: ModelConfig, layout: Layout) -> float:
    """Time of a FLOP of scores, divided by that of other products. Of cuDNN's, two sevenths are forward."""
    if layout.platform != "gpu" or not is_fused(config, layout):
        return 1.0
    forward, backward = (SHARES[target] for target in CUDNN)
    return MATRIX_SHARE * (2 / forward + 5 / backward) / 7


def score_traffic(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes that one layer's scores move through memory in a step."""
    if is_fused(config, layout) and not shares_keys(config, spec, layout):
        return 0
    return SCORE_TRAFFIC * _heads(config, layout) * computed_scores(config, spec, layout)


def working_set(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the float32 scores of all blocks of queries of one layer: compilers compute the blocks beside each
    other. Fused attention has none: cuDNN's backward pass sums gradients of queries in float32; TPU programs hold
    queries that are rotated in float32 twice, in two layouts, beside what the kernel takes. Where devices share keys,
    scores are those of two tiles, beside float32 outputs and gradients."""
    if shares_keys(config, spec, layout):
        tile = min(TILE, layout.sequence_length // layout.ways("length"))
        rows = layout.tokens * layout.ways("length") // layout.sequence_length
        return BYTES["float32"] * _heads(config, layout) * (2 * rows * tile**2 + 2 * layout.tokens * config.head_dim)
    if not is_fused(config, layout):
        return BYTES["float32"] * _heads(config, layout) * computed_scores(config, spec, layout)
    heads, element = _heads(config, layout), BYTES[config.compute_dtype]
    width = config.head_dim * layout.tokens
    if layout.platform == "tpu":
        return width * (2 * BYTES["float32"] * heads + element * (heads + 2 * _kv_heads(config, layout)))
    return BYTES["float32"] * heads * width


def _kv_heads(config: ModelConfig, layout: Layout) -> int:
    return config.num_key_value_heads // layout.ways("kv_heads")


def _heads(config: ModelConfig, layout: Layout) -> int:
    return config.num_attention_heads // layout.ways("heads")

"""What reasoning heads and repeated periods cost: products, scores, and keys that are kept."""

from maverick_jax.accounting.layout import BYTES, Layout
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec
from maverick_jax.reasoning import HeadGroup
from maverick_jax.stack import PERIODS, Slot


def groups_of(config: ModelConfig, spec: LayerSpec) -> tuple[HeadGroup, ...]:
    """The groups of reasoning heads of a layer."""
    return config.reasoning_heads.groups if spec.reasoning and config.reasoning_heads else ()


def score_width(config: ModelConfig, spec: LayerSpec, sequence_length: int) -> int:
    """Elements of queries times keys of a token in one layer: scores are computed for all slots, filled or not."""
    each = (group.heads * min(group.tokens, sequence_length) for group in groups_of(config, spec))
    return config.head_dim * sum(each)


def qkv_heads(config: ModelConfig, spec: LayerSpec, layout: Layout) -> tuple[int, int]:
    """Query heads, and key and value heads together, of a layer on one device."""
    groups = groups_of(config, spec)
    return sum(group.heads for group in groups) // layout.ways("heads"), 2 * len(groups)


def working_set(config: ModelConfig, spec: LayerSpec, layout: Layout) -> int:
    """Bytes of the float32 scores of one layer's reasoning heads on one device, and of the slots' keys and values."""
    width = score_width(config, spec, layout.sequence_length) // max(1, config.head_dim)
    scores = BYTES["float32"] * layout.tokens * width // layout.ways("heads")
    rows = layout.tokens * layout.ways("length") // layout.sequence_length
    return scores + rows * kept_bytes(config, spec)


def kept_bytes(config: ModelConfig, spec: LayerSpec) -> int:
    """Bytes of the keys and values of one row's or text's marked tokens in one layer."""
    slots = sum(group.tokens for group in groups_of(config, spec))
    return 2 * slots * config.head_dim * BYTES[config.compute_dtype]


def runs_of(config: ModelConfig, slot: Slot | None, *, trained: bool) -> float:
    """How often layers of a slot run in a forward pass; in one of training on average, if the number is drawn."""
    if slot is None:
        return 1
    if config.loops is None or slot.run != PERIODS:
        return len(slot.layers)
    first, end = config.loops.periods
    times = config.loops.trained_times if trained else config.loops.times
    return len(slot.layers) + (times - 1) * (end - first)

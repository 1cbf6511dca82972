"""Memory of an engine's slots, in closed form."""

from maverick_jax.accounting import reasoning
from maverick_jax.accounting.layout import BYTES
from maverick_jax.config import ModelConfig


def text_bytes(config: ModelConfig, context: int) -> dict[str, int]:
    """Bytes of the keys and values of one text on all devices: `per_token` in the layers with global attention, and
    `rings` in those with local attention, of which each keeps a chunk, and of texts shorter than that, `context`; with
    reasoning heads, `marked`, of their own keys. Layers that repeat count each time."""
    position = 2 * config.num_key_value_heads * config.head_dim * BYTES[config.compute_dtype]
    size = config.attention_chunk_size
    layers = [config.layer(i) for i in config.visits]
    local = 0 if size is None else sum(spec.rope for spec in layers)
    found = {"per_token": position * (len(layers) - local), "rings": position * local * min(size or 0, context)}
    marked = sum(reasoning.kept_bytes(config, spec) for spec in layers)
    return found | ({"marked": marked} if marked else {})


def slot_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of the keys and values of one slot for texts of up to `context` tokens, on all devices."""
    found = text_bytes(config, context)
    return found["per_token"] * context + found["rings"] + found.get("marked", 0)


def state_bytes(config: ModelConfig) -> int:
    """Bytes of what a slot holds beside keys and values, on each device: per token of the vocabulary logits, counts and
    biases of 4 bytes each, and whether it is in the prompt."""
    return 13 * config.vocab_size

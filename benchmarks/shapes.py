"""Model shapes and batches of the benchmarks."""

import dataclasses
from typing import Any

import numpy as np

LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 3e-5, 0.9, 0.95, 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model with Maverick's pattern (every other layer has experts, top-1 plus a shared one) and a batch for it."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    head_dim: int
    num_local_experts: int
    intermediate_size: int
    """Hidden width of an expert."""
    intermediate_size_mlp: int
    """Hidden width of a dense layer."""
    attention_chunk_size: int
    sequence_length: int
    batch_size: int
    warmup: int
    """Untimed steps before the first timed one, including the one that compiles."""
    steps: int
    """Timed steps."""
    num_attention_heads: int = 8
    num_key_value_heads: int = 4

    @property
    def tokens(self) -> int:
        """Number of tokens of a step."""
        return self.batch_size * self.sequence_length

    def model_fields(self) -> dict[str, Any]:
        """The fields that describe the network, with the names of Llama 4's public config."""
        ours = ("sequence_length", "batch_size", "warmup", "steps")
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in ours}
        return fields | {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1}

    def random_tokens(self) -> np.ndarray:
        """The batch of every step, int64[batch, sequence + 1]: inputs are all tokens but the last, labels all but the
        first."""
        return np.random.default_rng(0).integers(0, self.vocab_size, (self.batch_size, self.sequence_length + 1))


SHAPES = {
    "tiny": Shape(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        head_dim=32,
        num_local_experts=8,
        intermediate_size=512,
        intermediate_size_mlp=1024,
        attention_chunk_size=256,
        sequence_length=512,
        batch_size=8,
        warmup=3,
        steps=10,
    ),
    "big": Shape(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=8,
        head_dim=64,
        num_local_experts=16,
        intermediate_size=1024,
        intermediate_size_mlp=2048,
        attention_chunk_size=512,
        sequence_length=1024,
        batch_size=8,
        warmup=1,
        steps=2,
    ),
    # So small that the host's time dominates.
    "trivial": Shape(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=4,
        head_dim=8,
        num_local_experts=2,
        intermediate_size=16,
        intermediate_size_mlp=16,
        attention_chunk_size=8,
        sequence_length=16,
        batch_size=1,
        warmup=20,
        steps=500,
        num_attention_heads=2,
        num_key_value_heads=1,
    ),
}

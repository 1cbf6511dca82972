"""FLOPs per token, counted as in published Llama 4 figures: 6 per active parameter of a matrix product (including the
output matrix, excluding the embedding lookup), plus attention scores for the keys that the mask allows. Recomputation
in the backward pass is not counted."""

import collections

from maverick_jax import parameters
from maverick_jax.config import ModelConfig
from maverick_jax.network import LayerSpec


def attended_keys(config: ModelConfig, spec: LayerSpec, sequence_length: int) -> int:
    """Query-key pairs that a layer's mask allows in a row of one segment."""
    T, reach = sequence_length, config.attention_chunk_size
    if not spec.rope or reach is None or reach >= T:
        return T * (T + 1) // 2
    if config.local_attention == "sliding_window":
        return reach * (reach + 1) // 2 + (T - reach) * reach
    rest = T % reach
    return (T // reach) * (reach * (reach + 1) // 2) + rest * (rest + 1) // 2


def flops_per_token(config: ModelConfig, sequence_length: int) -> dict[str, float]:
    """FLOPs of the forward and backward pass per token, by part of the model, in rows of `sequence_length` tokens.

    The forward pass takes a third of them.
    """
    of = collections.Counter()
    for p in parameters.of_model(config):
        if len(p.shape) > 1:  # norms and biases take part in no matrix product
            of[p.role] += parameters.active(p, config)
    pairs = sum(attended_keys(config, spec, sequence_length) for spec in config.layers)
    return {
        "attention_projections": 6.0 * of["attention"],
        "attention_scores": 12.0 * config.num_attention_heads * config.head_dim * pairs / sequence_length,
        "dense": 6.0 * of["mlp"],
        "shared_experts": 6.0 * of["shared"],
        "routed_experts": 6.0 * of["experts"],
        "router": 6.0 * of["router"],
        "head": 6.0 * of["head"],
    }


def train_flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one token's forward and backward pass."""
    return sum(flops_per_token(config, sequence_length).values())

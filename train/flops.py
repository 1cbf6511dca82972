"""FLOPs of a run's step."""

from collections.abc import Mapping

from maverick_jax.accounting.flops import train_flops_per_token
from maverick_jax.config import ModelConfig
from train.config import RunConfig


def total_flops_per_token(config: RunConfig, references: Mapping[str, ModelConfig]) -> float:
    T = config.data.sequence_length
    return train_flops_per_token(config.model, T) + sum(train_flops_per_token(r, T) / 3 for r in references.values())

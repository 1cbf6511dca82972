"""FLOPs of a run's step: the one count that `mfu`, `maverick plan` and `environment.json` read."""

import math
from collections.abc import Mapping

from maverick_jax.accounting.flops import (
    Trained,
    flops_per_token,
    forward_flops_per_token,
    latent_flops_per_token,
)
from maverick_jax.config import ModelConfig
from train.config import RunConfig
from train.trainable.config import TrainableConfig

SAMPLING = "sampling"
"""Name of the part that an engine does beside the step, in FLOPs and bytes."""


def flops_of_run(config: RunConfig, references: Mapping[str, ModelConfig]) -> dict[str, float]:
    """FLOPs per token of a step, by part: the model's, as far as they are done (`maverick_jax.accounting.flops`), the
    passes for latent thoughts, the objective's heads, the forward passes of the `references`, and the sampling of
    batches."""
    model, length = config.model.network, config.data.sequence_length
    microbatch = config.data.batch_size * length // config.optimizer.accumulation_steps
    tiles = config.data.tiles_per_row
    found = flops_per_token(model, length, trained(config.trainable), microbatch, tiles)
    if model.latent:
        found["latents"] = latent_flops_per_token(model, length, trained(config.trainable))
    # a matrix beside the model: its product, and the gradients of both of its factors
    found["heads"] = 6.0 * sum(math.prod(head.shape) for head in config.objective.heads(model, dict(references)))
    found["references"] = sum((forward_flops_per_token(other, length, tiles) for other in references.values()), 0.0)
    maker = config.objective.batch_maker()
    found[SAMPLING] = maker.flops_per_token(model, length) if maker else 0.0
    return found


def trained(section: TrainableConfig) -> Trained:
    """What a `trainable` section trains, as FLOPs are counted."""
    chosen, lora = section.selection(), section.lora
    adapters = (lora.targets, lora.rank) if lora else ((), 0)
    layers = None if chosen.experts is None else frozenset(chosen.experts)
    return Trained(frozenset(chosen.roles), layers, *adapters)

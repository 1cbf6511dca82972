"""Latent thoughts in prompts: each is a piece of its own, because it reads the hidden state after the piece before."""

import dataclasses

import numpy as np

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.inference.engine.requests import GenerationRequest


def end_of_piece(tokens: np.ndarray, start: int, stop: int, token: int) -> int:
    """Where the piece that begins at `start` ends, at most at `stop`: after a latent, or before the next one. `token`
    holds the place of a latent."""
    if tokens[start] == token:
        return start + 1
    latents = np.flatnonzero(tokens[start:stop] == token)
    return start + int(latents[0]) if latents.size else stop


def resumable(identity: np.ndarray, config: ModelConfig) -> np.ndarray:
    """The first tokens of a prompt that may be taken from a kept text: none from the place before its first latent on,
    whose hidden state is not kept."""
    if config.latent is None:
        return identity
    latents = np.flatnonzero(identity == config.latent.token_id)
    return identity[: max(0, int(latents[0]) - 1)] if latents.size else identity


def undrawn(request: GenerationRequest, config: ModelConfig) -> GenerationRequest:
    """The request, in whose answer no token stands for a latent: a program places those, the model is not taught to."""
    if config.latent is None:
        return request
    bias = {**request.sampling.logit_bias, config.latent.token_id: -float("inf")}
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, logit_bias=bias))


def require_latents(config: ModelConfig, count: int) -> None:
    """Raises InputError for a number of latent thoughts that the model cannot think before an answer."""
    if count < 0 or (count and config.latent is None):
        expected = (
            "0, because the model has no latent thoughts (model.latent)" if config.latent is None else "0 or more"
        )
        raise InputError(f"--latents {count}; expected {expected}")

"""What the device knows of a request, made on the host."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from maverick_jax.inference.engine.requests import MAX_STOPS, GenerationRequest
from maverick_jax.ops.draw import DrawRules, Written


class Beginning(NamedTuple):
    """One slot's entries of `programs.Slots`, or those of B slots with a leading axis."""

    limit: np.ndarray | jax.Array
    scored: np.ndarray | jax.Array
    stops: np.ndarray | jax.Array
    rules: DrawRules
    written: Written


def beginning_of(request: GenerationRequest, seed: int, vocab_size: int) -> Beginning:
    """The entries of a slot that answers `request` with `seed`."""
    s = request.sampling
    stops = np.full(MAX_STOPS, -1, np.int32)
    stops[: len(request.stop_ids)] = sorted(request.stop_ids)
    prompt = np.zeros(vocab_size, bool)
    prompt[np.asarray(request.prompt)] = True
    rules = DrawRules(
        np.float32(s.temperature),
        np.int32(min(s.top_k, vocab_size)),
        np.float32(s.top_p),
        np.float32(s.min_p),
        np.float32(s.repetition_penalty),
        np.float32(s.presence_penalty),
        np.float32(s.frequency_penalty),
        np.uint32(seed % 2**32),
        bias_of(s.logit_bias, vocab_size),
    )
    written = Written(prompt, np.zeros(vocab_size, np.int32), np.int32(0))
    return Beginning(np.int32(request.max_tokens), np.asarray(request.log_probs is not None), stops, rules, written)


def bias_of(logit_bias: Mapping[int, float], vocab_size: int) -> np.ndarray:
    """float32[V]"""
    bias = np.zeros(vocab_size, np.float32)
    for token, value in logit_bias.items():
        bias[token] = value
    return bias

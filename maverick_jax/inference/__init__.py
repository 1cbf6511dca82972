"""Inference: generates text with a key-value cache. In three of four layers the cache is limited to one attention
chunk."""

from maverick_jax.inference.sampler import (
    Request,
    generate,
    prompt_ids_of,
    sample_tokens,
    stop_ids,
    stream,
    stream_ids,
    text_of,
)
from maverick_jax.inference.sampling import Sampling
from maverick_jax.inference.session import ChatSession

__all__ = [
    "ChatSession",
    "Request",
    "Sampling",
    "generate",
    "prompt_ids_of",
    "sample_tokens",
    "stop_ids",
    "stream",
    "stream_ids",
    "text_of",
]

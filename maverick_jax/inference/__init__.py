"""Inference: generates text with a key-value cache. In three of four layers the cache is limited to one attention
chunk."""

from maverick_jax.inference.answers import answers, generate, stream
from maverick_jax.inference.decoding import text_of
from maverick_jax.inference.prompts import prompt_ids_of, stop_ids
from maverick_jax.inference.sampling import Sampling
from maverick_jax.inference.session import ChatSession

__all__ = ["ChatSession", "Sampling", "answers", "generate", "prompt_ids_of", "stop_ids", "stream", "text_of"]

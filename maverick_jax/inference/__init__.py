"""Text from a model, with a cache that keeps one chunk in three layers of four."""

from maverick_jax.inference.sampler import Sampling, generate, sample_tokens, stop_ids, stream, stream_ids, text_of

__all__ = ["Sampling", "generate", "sample_tokens", "stop_ids", "stream", "stream_ids", "text_of"]

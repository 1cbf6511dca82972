"""Text: tokenizers, and the chat format built on them (`maverick_jax.text.chat`)."""

from maverick_jax.text.tokenizers.base import Tokenizer
from maverick_jax.text.tokenizers.compare import same_tokens
from maverick_jax.text.tokenizers.load import find_tokenizer, load_tokenizer

__all__ = ["Tokenizer", "find_tokenizer", "load_tokenizer", "same_tokens"]

"""Text: tokenizers and what is built from them."""

from maverick_jax.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]

"""Text: tokenizers and what is built from them."""

from maverick_jax.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

__all__ = ["Tokenizer", "find_tokenizer", "load_tokenizer"]

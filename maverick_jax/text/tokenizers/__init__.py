"""Tokenizers: bytes, Llama 4's tiktoken ranks, and Hugging Face `tokenizer.json`, behind one interface."""

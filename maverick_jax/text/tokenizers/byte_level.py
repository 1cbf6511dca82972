"""The byte tokenizers: one token per UTF-8 byte. They need no file."""

import pathlib
from collections.abc import Sequence

from maverick_jax.text.tokenizers.base import BYTES, NAME_FILE, THINKING_BYTES, Tokenizer, digest

CONTROLS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)
"""Control tokens with ids 256, 257, ... in this order. They have the names of Llama 4's control tokens, so that the
chat format and image tokens also work with bytes."""
THINKING = ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>", "<|reasoning_reserved_special_token_0|>")
"""Further ones of `bytes_thinking`, for thoughts in text and for latent ones. `bytes` stays as it is: its number of
tokens is the size of models."""


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are bytes; control tokens follow from 256."""

    name = BYTES
    bos_id, eos_id, pad_id = 256, 257, 258
    control_names: tuple[str, ...] = CONTROLS
    vocab_size = 256 + len(control_names)
    fingerprint = digest(b"bytes", *[c.encode() for c in control_names])

    def __init__(self):
        self._set_controls({text: 256 + i for i, text in enumerate(self.control_names)})

    def save(self, directory: str | pathlib.Path) -> None:
        (pathlib.Path(directory) / NAME_FILE).write_text(f"{self.name}\n")

    def bytes_of(self, token: int) -> bytes | None:
        return bytes([token]) if 0 <= token < 256 else None

    def starts(self, text: str, ids: Sequence[int]) -> list[int]:
        return [i for i, character in enumerate(text) for _ in character.encode("utf-8")]

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("utf-8")) for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class ThinkingByteTokenizer(ByteTokenizer):
    """The byte tokenizer with the control tokens of thoughts."""

    name = THINKING_BYTES
    control_names = (*CONTROLS, *THINKING)
    vocab_size = 256 + len(control_names)
    fingerprint = digest(b"bytes", *[c.encode() for c in control_names])

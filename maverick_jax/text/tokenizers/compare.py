"""Compare two tokenizers by what their ids mean."""

from maverick_jax.text.tokenizers.base import Tokenizer

_PROBE = "The year 1789; naïve café, 東京 🙂 Привет مرحبا\n\tx = {'a': [1, 2.5]}  # don't\r\n" + "".join(
    map(chr, range(0x20, 0x17F))
)
"""Text in several scripts: tokenizers with the same ids that merge them differently write it differently."""


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether every id means the same to both: equal control tokens, and equal text of each ordinary id. A tokenizer
    and its `tokenizer.json` have the same tokens, although their fingerprints differ. Which tokens begin and end a text
    may differ."""
    if one.fingerprint == other.fingerprint:
        return True
    if one.vocab_size != other.vocab_size or one.controls != other.controls:
        return False
    if one.encode(_PROBE) != other.encode(_PROBE):
        return False
    return all(one.decode([i]) == other.decode([i]) for i in range(one.vocab_size))

"""Write generation_config.json: the ids that end a text or a turn, and the sampling of instruct models."""

from collections.abc import Mapping
from typing import Any

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.huggingface import carried
from maverick_jax.text import Tokenizer

FILE = carried.GENERATION
ENDS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")
"""Tokens at which an instruct model stops."""
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
"""Sampling settings of the released instruct models."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CHECKED = {"do_sample": bool, "temperature": float, "top_p": float, "top_k": int, "max_new_tokens": int}
"""Keys whose types are checked; all others are copied as they are."""
_OWN = {"_from_model_config", "transformers_version", "attn_temperature_tuning", *IDS}
"""Keys that are not copied: they describe the file, or are written from the model and its tokenizer."""


def generation_config(
    config: ModelConfig, tokenizer: Tokenizer | None, source: Mapping[str, Any] | None, dialect: str | None
) -> dict[str, Any]:
    """generation_config.json as a dict.

    With `dialect`, that of an instruct model. Otherwise as in `source`, the file that came with the model. Without
    either, that of an instruct model if the tokenizer has a dialect, else that of a base model. Everything that
    `source` says besides token ids is kept in each case.
    Raises InputError if the tokenizer lacks the tokens that end a turn or `source` is malformed.
    """
    found = _of_tokenizer(tokenizer)
    if dialect is None and source is None and tokenizer is not None:
        dialect = tokenizer.dialect
    if dialect is not None:
        found |= {"eos_token_id": _ends(tokenizer, dialect), **SAMPLING}
    elif source is not None:
        found |= _source_ids(source, config.vocab_size)
    found |= _other_keys(source or {})
    known = {key: value for key, value in found.items() if value is not None}
    # vLLM reads this switch here and not in config.json
    return known | {"attn_temperature_tuning": config.attn_temperature_tuning}


def token_ids(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids that config.json repeats; None for a missing token."""
    return {key: generation.get(key) for key in IDS}


def _of_tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any]:
    ids = (None,) * 3 if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return dict(zip(IDS, ids, strict=True))


def _ends(tokenizer: Tokenizer | None, dialect: str) -> list[int]:
    if tokenizer is None:
        raise InputError(f"dialect: {dialect!r} needs a tokenizer, but the model has none")
    absent = [text for text in ENDS if text not in tokenizer.controls]
    if absent:
        raise InputError(f"dialect: {dialect!r}: tokenizer {tokenizer.name} has no {absent[0]}; conversations need it")
    return [tokenizer.controls[text] for text in ENDS]


def _source_ids(source: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in IDS:
        if (value := source.get(key)) is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids) or (key != IDS[1] and ids is value):
            raise InputError(f"{FILE}: {key}: expected an id below {vocab_size:,}, found {value!r}")
        found[key] = value
    return found


def _other_keys(source: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, kind in _CHECKED.items():
        if (value := source.get(key)) is None:
            continue
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
            raise InputError(f"{FILE}: {key}: expected {kind.__name__}, found {value!r:.80}")
        found[key] = kind(value)
    return found | {key: value for key, value in source.items() if key not in _OWN and key not in _CHECKED}

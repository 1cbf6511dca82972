"""Read and write generation_config.json: the ids that end a text or a turn, and the sampling of instruct models."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from maverick_jax.config import ModelConfig
from maverick_jax.errors import InputError
from maverick_jax.files import read_json
from maverick_jax.text import Tokenizer

log = logging.getLogger(__name__)

FILE = "generation_config.json"
ENDS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")
"""Tokens at which an instruct model stops."""
SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
"""Sampling settings of the released instruct models."""
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CARRIED = {"do_sample": bool, "temperature": float, "top_p": float, "top_k": int, "max_new_tokens": int}
_NOT_REPORTED = {"_from_model_config", "transformers_version", "attn_temperature_tuning", *_IDS, *_CARRIED}


def read(source: pathlib.Path) -> dict[str, Any] | None:
    """The generation_config.json of the model at `source`, a run directory, one of its checkpoints or a Hugging Face
    folder; None if there is none. Raises InputError if it is not JSON."""
    folder = source.expanduser().absolute()
    for candidate in (folder, folder.parent.parent if folder.parent.name == "checkpoints" else folder):
        if (candidate / FILE).is_file():
            return read_json(candidate / FILE)
    return None


def generation_config(
    config: ModelConfig, tokenizer: Tokenizer | None, source: Mapping[str, Any] | None, dialect: str | None
) -> dict[str, Any]:
    """generation_config.json as a dict.

    With `dialect`, that of an instruct model. Otherwise as in `source`, the file that came with the model. Without
    either, that of an instruct model if the tokenizer has a dialect, else that of a base model.
    Raises InputError if the tokenizer lacks the tokens that end a turn or `source` is malformed.
    """
    found = _of_tokenizer(tokenizer)
    if dialect is None and source is None and tokenizer is not None:
        dialect = tokenizer.dialect
    if dialect is not None:
        found |= SAMPLING | {"eos_token_id": _ends(tokenizer, dialect)}
    elif source is not None:
        found |= _carried(source, config.vocab_size)
    known = {key: value for key, value in found.items() if value is not None}
    # vLLM reads this switch here and not in config.json
    return known | {"attn_temperature_tuning": config.attn_temperature_tuning}


def token_ids(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids that config.json repeats; None for a missing token."""
    return {key: generation.get(key) for key in _IDS}


def _of_tokenizer(tokenizer: Tokenizer | None) -> dict[str, Any]:
    ids = (None,) * 3 if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return dict(zip(_IDS, ids, strict=True))


def _ends(tokenizer: Tokenizer | None, dialect: str) -> list[int]:
    if tokenizer is None:
        raise InputError(f"dialect: {dialect!r} needs a tokenizer, but the model has none")
    absent = [text for text in ENDS if text not in tokenizer.controls]
    if absent:
        raise InputError(f"dialect: {dialect!r}: tokenizer {tokenizer.name} has no {absent[0]}; conversations need it")
    return [tokenizer.controls[text] for text in ENDS]


def _carried(source: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in _IDS:
        if (value := source.get(key)) is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids) or (key != _IDS[1] and ids is value):
            raise InputError(f"{FILE}: {key}: expected an id below {vocab_size:,}, found {value!r}")
        found[key] = value
    for key, kind in _CARRIED.items():
        if (value := source.get(key)) is None:
            continue
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
            raise InputError(f"{FILE}: {key}: expected {kind.__name__}, found {value!r:.80}")
        found[key] = kind(value)
    if unknown := sorted(set(source) - _NOT_REPORTED):
        log.warning("%s: ignoring keys: %s", FILE, ", ".join(unknown))
    return found

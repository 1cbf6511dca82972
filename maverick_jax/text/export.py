"""Any of our tokenizers as a Hugging Face `tokenizer.json`, so that other programs split text into the same ids."""

import functools
import itertools
import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from maverick_jax.text.byte_level import ByteTokenizer
from maverick_jax.text.hugging_face import CONFIG_FILE, HuggingFaceTokenizer
from maverick_jax.text.llama4 import SPLIT_PATTERN, Llama4Tokenizer
from maverick_jax.text.tokenizer import JSON_FILE, Tokenizer


def write_hugging_face(tokenizer: Tokenizer, directory: str | pathlib.Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`; ids are those of `tokenizer`.

    Unlike ours, other programs' default is to read control tokens out of text."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.save(directory)
        return
    made = _as_tokenizers(tokenizer)
    by_id = sorted(tokenizer.controls, key=tokenizer.controls.__getitem__)
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in by_id])
    folder = pathlib.Path(directory)
    made.save(str(folder / JSON_FILE))
    roles = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    written = {i: text for text, i in tokenizer.controls.items()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {r: written[i] for r, i in roles.items() if i in written}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@functools.singledispatch
def _as_tokenizers(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same ids without the control tokens."""
    raise TypeError(f"no Hugging Face form of {type(tokenizer).__name__}")


@_as_tokenizers.register
def _(tokenizer: ByteTokenizer) -> tokenizers.Tokenizer:
    return _byte_level(models.BPE({_printable(bytes([byte])): byte for byte in range(256)}, []))


@_as_tokenizers.register
def _(tokenizer: Llama4Tokenizer) -> tokenizers.Tokenizer:
    ranks = tokenizer.ranks
    vocab = {_printable(token): rank for token, rank in ranks.items()}
    pairs = filter(None, (last_merge(token, ranks) for token in ranks))
    merges = [(_printable(left), _printable(right)) for left, right in pairs]
    # tiktoken takes a piece that is a token as it is, also when no sequence of merges leads to it.
    made = _byte_level(models.BPE(vocab, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
    return made


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge gives `token`; None for a byte, or where merges of lower rank do not lead there."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, at = min(found)
        if rank >= ranks[token]:
            return None
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


@functools.cache
def _printable_bytes() -> list[str]:
    """The characters that byte-level BPE writes bytes as (GPT-2): printable ones as themselves, others from U+0100."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def _printable(token: bytes) -> str:
    return "".join(map(_printable_bytes().__getitem__, token))

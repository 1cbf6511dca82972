"""Write any of our tokenizers as a Hugging Face `tokenizer.json`, so that other programs get the same ids."""

import functools
import itertools
import pathlib

import tokenizers
from tokenizers import models

from maverick_jax.text.chat import find_dialect
from maverick_jax.text.tokenizers.base import JSON_FILE, Tokenizer
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from maverick_jax.text.tokenizers.byte_pairs import add_controls, begin_with, byte_level, with_split
from maverick_jax.text.tokenizers.hugging_face import HuggingFaceTokenizer, write_config
from maverick_jax.text.tokenizers.llama4 import Llama4Tokenizer

INSTRUCT_END = "<|eot|>"


def write_hugging_face(tokenizer: Tokenizer, directory: str | pathlib.Path, dialect: str | None = None) -> None:
    """Write `tokenizer.json` and the files that accompany it, with the ids of `tokenizer`.

    With `dialect` (default: the tokenizer's own) the folder describes an instruct model: it has the dialect's
    `chat_template.jinja`, and text ends with `<|eot|>` instead of `<|end_of_text|>`. Note that other programs, by
    default, put BOS before a text and turn written control tokens in it into control ids; ours do neither.
    Raises InputError for an unknown dialect.
    """
    folder = pathlib.Path(directory)
    other = dialect is not None  # a template that was asked for replaces the one that came with the tokenizer
    dialect = find_dialect(dialect).name if dialect else tokenizer.dialect
    written = {i: text for text, i in tokenizer.controls.items()}
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    roles = {role: written[i] for role, i in ids.items() if i in written}
    if dialect and INSTRUCT_END in tokenizer.controls:
        roles["eos_token"] = INSTRUCT_END
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.save(folder)
        kept = tokenizer.kept.without_template() if other else tokenizer.kept
        write_config(folder, roles, {}, dialect, kept)
        return
    made = _as_tokenizers(tokenizer)
    controls = dict(sorted(tokenizer.controls.items(), key=lambda item: item[1]))
    add_controls(made, controls)
    made.post_processor = begin_with(roles["bos_token"], controls[roles["bos_token"]])
    made.save(str(folder / JSON_FILE))
    write_config(folder, roles, controls, dialect)


@functools.singledispatch
def _as_tokenizers(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer of the `tokenizers` library with the same ids, without the control tokens."""
    raise TypeError(f"no Hugging Face form of {type(tokenizer).__name__}")


@_as_tokenizers.register
def _(tokenizer: ByteTokenizer) -> tokenizers.Tokenizer:
    return byte_level(models.BPE({_printable(bytes([byte])): byte for byte in range(256)}, []))


@_as_tokenizers.register
def _(tokenizer: Llama4Tokenizer) -> tokenizers.Tokenizer:
    ranks = tokenizer.ranks
    vocab = {_printable(token): rank for token, rank in ranks.items()}
    pairs = filter(None, (last_merge(token, ranks) for token in ranks))
    merges = [(_printable(left), _printable(right)) for left, right in pairs]
    # tiktoken encodes a piece that is a token as that token, even if no sequence of merges produces it.
    return with_split(byte_level(models.BPE(vocab, merges, ignore_merges=True)))


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens whose merge gives `token`; None for a byte, or if merges of lower rank do not produce the two."""
    parts = [token[i : i + 1] for i in range(len(token))]
    none = len(ranks)
    merges = [ranks.get(a + b, none) for a, b in itertools.pairwise(parts)]
    while len(parts) > 2:
        rank = min(merges)
        if rank >= ranks[token]:
            return None
        at = merges.index(rank)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del merges[at]
        if at > 0:
            merges[at - 1] = ranks.get(parts[at - 1] + parts[at], none)
        if at < len(merges):
            merges[at] = ranks.get(parts[at] + parts[at + 1], none)
    return (parts[0], parts[1]) if len(parts) == 2 else None


@functools.cache
def _printable_bytes() -> list[str]:
    """The character for each byte in byte-level BPE (GPT-2): printable bytes as themselves, others from U+0100 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def _printable(token: bytes) -> str:
    return "".join(map(_printable_bytes().__getitem__, token))

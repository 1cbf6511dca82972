"""Byte-level BPE of the `tokenizers` library, with Llama 4's split pattern: its parts, and its training."""

import pathlib
from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from maverick_jax.errors import InputError
from maverick_jax.text.tokenizers.base import JSON_FILE
from maverick_jax.text.tokenizers.hugging_face import ROLES, write_config
from maverick_jax.text.tokenizers.llama4 import SPLIT_PATTERN, control_texts

CONTROLS = tuple(text for text in control_texts() if "reserved" not in text)
"""Control tokens of a trained tokenizer: those of Llama 4 that have a use. Their ids follow the ordinary ones."""
MOST_ENTRIES = 256_000
LEAST_ENTRIES = 256 + len(CONTROLS)
LONGEST_TOKEN = 64
"""Characters of the longest token that is learned, so that one line of hyphens gives no token of its own."""


def train_byte_pairs(texts: Iterable[str], vocab_size: int, folder: pathlib.Path) -> None:
    """Learn a byte-level BPE from `texts` and write it to the existing `folder`: `tokenizer.json` and the files that
    accompany one. It has exactly `vocab_size` ids: 256 bytes, what is learned, then CONTROLS.

    Memory grows with the number of different words (matches of the split pattern), not with the texts. Equal texts in
    equal order give an equal tokenizer. Raises InputError for a size out of range, or if the texts give fewer tokens.
    """
    if not LEAST_ENTRIES < vocab_size <= MOST_ENTRIES:
        raise InputError(
            f"vocabulary: {vocab_size:,} entries; expected more than {LEAST_ENTRIES} (256 bytes and {len(CONTROLS)} "
            f"control tokens) and at most {MOST_ENTRIES:,}"
        )
    made = with_split(byte_level(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if (found := made.get_vocab_size() + len(CONTROLS)) < vocab_size:
        raise InputError(f"vocabulary: the texts give {found:,} entries; expected {vocab_size:,}: ask for fewer, or "
                         "add text")  # fmt: skip
    add_controls(made, CONTROLS)
    ids = {text: vocab_size - len(CONTROLS) + i for i, text in enumerate(CONTROLS)}
    roles = {role: next(name for name in names if name in ids) for role, names in ROLES.items()}
    made.post_processor = begin_with(roles["bos_token"], ids[roles["bos_token"]])
    made.save(str(folder / JSON_FILE))
    write_config(folder, roles, ids, None)


def byte_level(model: models.Model) -> tokenizers.Tokenizer:
    """A tokenizer that gives `model` the bytes of a text, as printable characters."""
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def with_split(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """`made`, which now splits texts by Llama 4's pattern first."""
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, made.pre_tokenizer])
    return made


def add_controls(made: tokenizers.Tokenizer, controls: Iterable[str]) -> None:
    """Give `made` control tokens, with the next free ids."""
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])


def begin_with(text: str, token: int) -> processors.PostProcessor:
    """A post-processor that begins each text, also each of a pair, with this control token."""
    template = processors.TemplateProcessing(
        single=f"{text} $A", pair=f"{text}:0 $A:0 {text}:1 $B:1", special_tokens=[(text, token)]
    )
    return processors.Sequence([processors.ByteLevel(trim_offsets=False), template])

"""Find what the tokens of one tokenizer are in another, for a model that moves to it.

An ordinary token is the same one if it stands for the same bytes, a control token if it has the same name. Any other
ordinary token is spelled in the tokens of the old tokenizer: its pieces. A control token without a namesake has none.
"""

import dataclasses
import itertools

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.text.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class VocabularyMove:
    """For each id of a model's new vocabulary, the ids of its old one that it begins as."""

    pieces: np.ndarray
    """int64 [P]: old ids; those of new id 0, then those of 1, and so on."""
    counts: np.ndarray
    """int64 [rows]: pieces of each new id. 1: the old id's row is kept; 0: there is nothing to begin as."""
    unused: np.ndarray
    """int64 [U]: old ids that no text has, so that their model has learned never to predict them."""
    tokens: int
    """Ids of the new tokenizer; the rows after them belong to no token."""

    @classmethod
    def between(cls, old: Tokenizer, old_rows: int, new: Tokenizer, new_rows: int) -> "VocabularyMove":
        """The move from a model of `old_rows` rows with tokenizer `old` to one of `new_rows` with `new`. Raises
        InputError for a tokenizer that does not say which bytes its tokens stand for."""
        spelled = _spelled(new, old)
        controls = {token: old.controls[text] for text, token in new.controls.items() if text in old.controls}
        found = [[controls[i]] if i in controls else spelled.get(i, []) for i in range(new_rows)]
        counts = np.fromiter(map(len, found), np.int64, new_rows)
        pieces = np.fromiter(itertools.chain.from_iterable(found), np.int64, int(counts.sum()))
        beyond = range(old.vocab_size, old_rows)
        padding = (
            [old.pad_id] if old.pad_id in old.controls.values() and old.pad_id not in (old.bos_id, old.eos_id) else []
        )
        return cls(pieces, counts, np.array([*padding, *beyond], np.int64), new.vocab_size)

    def __str__(self) -> str:
        of_tokens = self.counts[: self.tokens]
        kept, averaged, none = ((of_tokens == 1).sum(), (of_tokens > 1).sum(), (of_tokens == 0).sum())
        return (
            f"{kept:,} tokens keep their rows, {averaged:,} begin as the mean of their pieces, {none:,} from scratch; "
            f"{len(self.counts) - self.tokens:,} rows belong to no token"
        )


def _spelled(new: Tokenizer, old: Tokenizer) -> dict[int, list[int]]:
    """The pieces in `old` of each ordinary token of `new` that has some."""
    known, wanted = _by_bytes(old), _by_bytes(new)
    others = [written for written in wanted if written not in known]
    texts = [text for written in others if (text := _text(written)) is not None]
    encoded = dict(zip((text.encode() for text in texts), old.encode_batch(texts), strict=True))
    found: dict[int, list[int]] = {}
    for token in range(new.vocab_size):
        if (written := new.bytes_of(token)) is None:
            continue
        pieces = [known[written]] if written in known else encoded.get(written)
        if pieces is None or b"".join(old.bytes_of(piece) or b"" for piece in pieces) != written:
            pieces = [known[byte] for i in range(len(written)) if (byte := written[i : i + 1]) in known]
            pieces = pieces if len(pieces) == len(written) else []
        found[token] = pieces
    return found


def _by_bytes(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Bytes of an ordinary token -> its id, the least one if several stand for the same bytes."""
    found: dict[bytes, int] = {}
    for token in range(tokenizer.vocab_size):
        if written := tokenizer.bytes_of(token):
            found.setdefault(written, token)
    if not found:
        raise InputError(
            f"{tokenizer.name}: does not say which bytes its tokens stand for, so they cannot be found in another "
            "vocabulary; expected a byte-level tokenizer"
        )
    return found


def _text(written: bytes) -> str | None:
    try:
        return written.decode()
    except UnicodeDecodeError:
        return None  # a part of a character

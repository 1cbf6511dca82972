"""Decontamination: leaves out documents that share a stretch of words with an evaluation.

Texts are compared as words: Unicode NFKC, case folded, runs of letters and digits; a character of a script without
spaces is a word of its own. A document is left out if any `words` consecutive words of it are also consecutive in a
text of an evaluation. A text of an evaluation that is shorter is looked for whole, if it has at least `least_words`.

Only hashes are kept, 8 bytes for each stretch of the evaluations and a name for it, so memory does not grow with the
documents. A wrong match needs two stretches with equal 64-bit hashes.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import numpy as np
import pydantic
from pydantic import Field

from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

VERSION = 1
"""Changes when the same settings would leave out other documents."""
_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
"""Thai, Lao, Burmese, Khmer, kana, Han."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W_{_WITHOUT_SPACES}]+")


class Decontamination(Section):
    """The evaluations whose texts a source's documents must not contain."""

    files: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    """Files, folders or globs of evaluations: text, whose paragraphs are texts of their own, or JSON lines, in which
    every string is one."""
    words: Annotated[int, Field(ge=1)] = 13
    """Number of consecutive words that are enough."""
    least_words: Annotated[int, Field(ge=1)] = 8
    """Fewest words of a text that is shorter than `words` and still looked for, as a whole; others are ignored."""

    @pydantic.model_validator(mode="after")
    def _has_short_texts(self):
        if self.least_words > self.words:
            raise ValueError(f"least_words ({self.least_words}) exceeds words ({self.words})")
        return self


def words_of(text: str) -> list[str]:
    """The words by which texts are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class SharedWords(NamedTuple):
    """Words that a document shares with an evaluation."""

    file: str
    text: str
    """The words, as they were compared."""


class Evaluations:
    """Stretches of the texts of evaluations, by their hashes."""

    def __init__(self, texts: Iterable[tuple[str, str]], config: Decontamination):
        """texts: (file, text). Raises InputError if none is long enough to be looked for."""
        self.files: list[str] = []
        self.ignored = 0
        found: dict[int, list[tuple[np.ndarray, int]]] = {}
        for file, text in texts:
            if not self.files or self.files[-1] != file:
                self.files.append(file)
            words = words_of(text)
            if (length := min(len(words), config.words)) < config.least_words:
                self.ignored += len(words) > 0
            else:
                found.setdefault(length, []).append((_stretches(words, length), len(self.files) - 1))
        if not found:
            raise InputError(
                f"{', '.join(config.files)}: no text has {config.least_words} words (decontaminate.least_words), so "
                "nothing would be left out"
            )
        self._tables = {length: _table(parts) for length, parts in sorted(found.items())}
        """Number of words -> sorted hashes uint64 [S], and for each the number of its file."""

    def match(self, text: str) -> SharedWords | None:
        """The first shared stretch of the fewest words; None: the text has none."""
        words = words_of(text)
        for length, (hashes, files) in self._tables.items():
            stretches = _stretches(words, length)
            at = np.minimum(np.searchsorted(hashes, stretches), hashes.size - 1)
            if (same := hashes[at] == stretches).any():
                first = int(np.argmax(same))
                return SharedWords(self.files[files[at[first]]], " ".join(words[first : first + length]))
        return None


def _table(parts: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.concatenate([stretches for stretches, _ in parts])
    files = np.repeat(np.array([file for _, file in parts]), [stretches.size for stretches, _ in parts])
    unique, first = np.unique(hashes, return_index=True)
    return unique, files[first]


def _stretches(words: list[str], length: int) -> np.ndarray:
    """Hashes of each `length` consecutive words, uint64 [max(0, words - length + 1)]."""
    count = len(words) - length + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    each = np.fromiter(map(_hash, words), np.uint64, len(words))
    found = np.zeros(count, np.uint64)
    for i in range(length):  # a polynomial in the words' hashes, modulo 2^64
        found = found * _FACTOR + each[i : i + count]
    return found


_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")

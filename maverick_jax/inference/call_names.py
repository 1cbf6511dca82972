"""Restricts which tools an answer can call: while a name is written, only tokens that lead to an allowed one."""

import bisect
from collections.abc import Collection, Sequence

import numpy as np

from maverick_jax.inference.engine.requests import TokenFilter
from maverick_jax.text import Tokenizer
from maverick_jax.text.chat import Dialect


class CallNames:
    """Makes filters for one tokenizer and dialect. A tokenizer whose tokens have no bytes of their own restricts
    nothing."""

    def __init__(self, tokenizer: Tokenizer, dialect: Dialect, vocab_size: int):
        self.tokenizer, self.dialect, self.vocab_size = tokenizer, dialect, vocab_size
        known = ((tokenizer.bytes_of(i) or b"", i) for i in range(min(tokenizer.vocab_size, vocab_size)))
        found = sorted(pair for pair in known if pair[0])
        self._texts, self._ids = [text for text, _ in found], np.array([i for _, i in found], np.int64)
        other = [i for text, i in found if not _begins_name(text)]
        self._other = np.zeros(vocab_size, bool)
        self._other[other] = True

    def filter(self, allowed: Collection[str]) -> TokenFilter:
        """A filter of one answer, which may call the tools in `allowed`."""
        return _NameFilter(self, allowed)

    def mask(self, continuations: Collection[str], must: bool) -> np.ndarray:
        """bool[V]: tokens that agree with one of `continuations` as far as both go and, unless a name `must` follow,
        those that begin none."""
        found = np.zeros(self.vocab_size, bool) if must else self._other.copy()
        for wanted in (text.encode() for text in continuations):
            for length in range(1, len(wanted)):  # tokens that are a beginning of it
                self._mark(found, wanted[:length], wanted[:length] + b"\0")
            self._mark(found, wanted, wanted[:-1] + bytes([wanted[-1] + 1]))  # and those that begin with it
        return found

    def _mark(self, found: np.ndarray, least: bytes, below: bytes) -> None:
        begin, end = (bisect.bisect_left(self._texts, text) for text in (least, below))
        found[self._ids[begin:end]] = True


class _NameFilter(TokenFilter):
    def __init__(self, names: CallNames, allowed: Collection[str]):
        self._names, self._allowed = names, tuple(allowed)

    def mask(self, written: Sequence[int]) -> np.ndarray | None:
        place = self._names.dialect.open_name(written, self._names.tokenizer)
        if place is None or not (wanted := list(place.continuations(self._allowed))):
            return None
        found = self._names.mask(wanted, place.must)
        return found if found.any() else None


def _begins_name(text: bytes) -> bool:
    """Whether a token can begin a name, as such or in quotes, white space before it included."""
    first = text.lstrip()[:1].decode("utf-8", "replace")
    return first.isalpha() or first in ("_", "'", '"', "\N{REPLACEMENT CHARACTER}")

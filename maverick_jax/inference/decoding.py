"""Decodes tokens as they come, each once."""

from collections.abc import Iterable, Iterator

from maverick_jax.text import Tokenizer

UNFINISHED = "\ufffd"
SETTLED = 3
"""Tokens after which a character is whole: it has at most four bytes, and a token at least one."""
LONGEST = 16
"""Tokens that are decoded again at most, beside `SETTLED`, where invalid bytes follow each other."""


class TextDecoder:
    """The text of tokens that come one by one. No piece ends inside a character, and all pieces together are the text
    of all tokens."""

    def __init__(self, tokenizer: Tokenizer, *, controls: bool = False):
        self._decode = lambda ids: tokenizer.decode(ids, controls=controls)
        self._before: list[int] = []
        """Tokens of the last whole piece: what a token's text is can depend on whether it begins the text."""
        self._ids: list[int] = []
        self._shown = 0
        """Characters of the text of `_ids` that were given out."""

    def add(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        text = self._text(self._ids)
        whole = text.removesuffix(UNFINISHED)
        new, self._shown = whole[self._shown :], max(self._shown, len(whole))
        if whole == text:
            self._before, self._ids, self._shown = self._ids, [], 0
        elif len(self._ids) > LONGEST:
            self._forget(text)
        return new

    def end(self) -> str:
        """The rest of the text. A character that is not whole by now never will be, whatever tokens come."""
        rest = self._text(self._ids)[self._shown :]
        if self._ids:
            self._before = [] if rest.endswith(UNFINISHED) else self._ids
        self._ids, self._shown = [], 0
        return rest

    def _text(self, ids: list[int]) -> str:
        before = self._decode(self._before)
        return self._decode([*self._before, *ids])[len(before) :]

    def _forget(self, text: str) -> None:
        """Cuts the tokens that cannot change the text any more."""
        for cut in range(len(self._ids) - SETTLED, 0, -1):
            first, rest = self._decode(self._ids[:cut]), self._decode(self._ids[cut:])
            if len(first) <= self._shown and first + rest == text:
                self._before, self._ids = [], self._ids[cut:]
                self._shown -= len(first)
                return


def text_of(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Decodes tokens as they come. No piece of text ends inside a character."""
    decoder = TextDecoder(tokenizer)
    for token in tokens:
        if text := decoder.add(token):
            yield text
    if text := decoder.end():
        yield text

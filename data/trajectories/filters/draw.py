"""Pseudorandom numbers that depend only on a salt and a value."""

import dataclasses
import hashlib

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class NumberStream:
    """A stream of pseudorandom numbers (SHAKE-256, keyed); it is unpredictable without the salt."""

    def __init__(self, *about: str):
        key = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in about)
        self._bits = int.from_bytes(hashlib.shake_256(key).digest(512), "big")

    def below(self, n: int) -> int:
        """A number from 0 to n - 1. The stream has enough bits for any value that a rule finds."""
        self._bits, found = divmod(self._bits, n)
        return found

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))

    def like(self, text: str) -> str:
        """`text` with its letters replaced by other lower-case letters and its digits by other digits."""
        return "".join(map(self._like, text))

    def _like(self, character: str) -> str:
        if character.isalpha():
            return LETTERS[self.below(26)]
        return str(self.below(10)) if character.isdecimal() else character


@dataclasses.dataclass(frozen=True)
class Seeds:
    """Seeds of the pseudorandom numbers for the replacement of one value."""

    salt: str
    kind: str
    value: str
    attempt: int
    """Number of earlier attempts, which failed because their replacements were taken."""

    def own(self) -> NumberStream:
        """Numbers for this value and attempt."""
        return NumberStream(self.salt, self.kind, self.value, str(self.attempt))

    def shared(self, part: str) -> NumberStream:
        """Numbers for a part of the value that other values may share; the same in every attempt."""
        return NumberStream(self.salt, self.kind, part)

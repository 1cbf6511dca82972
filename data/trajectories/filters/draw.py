"""Numbers that follow from a salt and a value, and from nothing else."""

import dataclasses
import hashlib

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Draw:
    """A stream of numbers. Without the salt nothing can be told of it (SHAKE-256, keyed)."""

    def __init__(self, *about: str):
        key = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in about)
        self._bits = int.from_bytes(hashlib.shake_256(key).digest(512), "big")

    def below(self, n: int) -> int:
        """0 to n - 1. The bits last for any value that a rule finds."""
        self._bits, found = divmod(self._bits, n)
        return found

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))

    def like(self, text: str) -> str:
        """`text` with other small letters and digits in the places of its own."""
        return "".join(map(self._like, text))

    def _like(self, character: str) -> str:
        if character.isalpha():
            return LETTERS[self.below(26)]
        return str(self.below(10)) if character.isdecimal() else character


@dataclasses.dataclass(frozen=True)
class Source:
    """What the replacement of one value is drawn from."""

    salt: str
    kind: str
    value: str
    attempt: int
    """Counts up while replacements are taken already."""

    def own(self) -> Draw:
        """Of this value and this attempt."""
        return Draw(self.salt, self.kind, self.value, str(self.attempt))

    def of(self, part: str) -> Draw:
        """Of a part that other values may share, in every attempt."""
        return Draw(self.salt, self.kind, part)

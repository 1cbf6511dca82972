"""Text to token ids and back, behind one interface.

Text is always ordinary text: `encode` never returns a control id, whatever strings the text holds. Control tokens
(begin and end of text, padding, roles) are placed by code, by id, through `controls`.
"""

import abc
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maverick_jax.errors import InputError

BYTES = "bytes"
NAME_FILE, JSON_FILE, RANKS_FILE = "tokenizer.txt", "tokenizer.json", "tokenizer.model"
UNKNOWN_ID = "\ufffd"
MAX_BYTES = 64 << 20
"""Of a tokenizer's file; Llama 4's `tokenizer.json` has 28 MB."""


class Tokenizer(abc.ABC):
    """A fixed, reversible map between text and token ids."""

    name: str
    """What a reader calls it: `bytes`, or the file it came from."""
    fingerprint: str
    """Hex digest of everything the ids depend on; equal fingerprints give equal ids."""
    vocab_size: int
    """One more than the largest id, control tokens included."""
    bos_id: int | None
    """Begins a document; None where the tokenizer has no such token."""
    eos_id: int | None
    """Ends a document; None where the tokenizer has no such token."""
    pad_id: int
    """Fills the rest of a row; never attended to, never a label."""
    controls: Mapping[str, int]
    """Every control token, by its written form."""
    dialect: str | None = None
    """How its model writes tools (`maverick_jax.text.chat`), where the folder it came from says so."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as ordinary text, without begin or end. Raises InputError for text that is not Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several threads where the library can."""
        for text in texts:
            require_unicode(text)
        return self._encode_batch(texts)

    def decode(self, ids: Iterable[int], *, controls: bool = False) -> str:
        """Text of `ids`; `decode(encode(text)) == text`. Bytes that are no UTF-8 and ids outside the vocabulary
        become U+FFFD. Control tokens are left out, or written by name with `controls`."""
        parts = []
        for kind, run in itertools.groupby(map(int, ids), key=self._kind):
            if kind == "control":
                parts += [self._written[i] for i in run] if controls else []
            elif kind == "ordinary":
                parts.append(self._decode(list(run)))
            else:
                parts += [UNKNOWN_ID for _ in run]
        return "".join(parts)

    @abc.abstractmethod
    def starts(self, text: str, ids: Sequence[int]) -> list[int]:
        """For each of `ids`, which are `encode(text)`: the index of the character that its first byte is part of."""

    @abc.abstractmethod
    def save(self, directory: str | pathlib.Path) -> None:
        """Write what `load_tokenizer(directory)` needs to give this tokenizer back."""

    @abc.abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that are all inside the vocabulary and none a control token."""

    def _set_controls(self, controls: Mapping[str, int]) -> None:
        self.controls = dict(controls)
        self._written = {i: text for text, i in controls.items()}

    def _kind(self, token: int) -> str:
        if token in self._written:
            return "control"
        return "ordinary" if 0 <= token < self.vocab_size else "unknown"


def read_file(path: pathlib.Path) -> bytes:
    """What a tokenizer's file holds. Raises InputError for one that is too large or cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no tokenizer's file is")
    return content


def digest(*parts: bytes) -> str:
    """Fingerprint of `parts`, each of which counts with its length."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def require_unicode(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"expected str, got {type(text).__name__}")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(f"character {error.start} is half a character (surrogate U+{code:04X}); "
                         "expected Unicode text") from None  # fmt: skip

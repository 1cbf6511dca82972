"""Text to token ids and back, behind one interface.

Text is always ordinary text: `encode` never returns a control id, whatever strings the text contains. Code inserts
control tokens (begin and end of text, padding, roles) by their ids in `controls`.
"""

import abc
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maverick_jax.errors import InputError

BYTES, THINKING_BYTES = "bytes", "bytes_thinking"
NAME_FILE, JSON_FILE, RANKS_FILE = "tokenizer.txt", "tokenizer.json", "tokenizer.model"
UNKNOWN_ID = "\ufffd"
MAX_BYTES = 64 << 20
"""Largest tokenizer file that is read, in bytes; Llama 4's `tokenizer.json` has 28 MB."""


class Tokenizer(abc.ABC):
    """A fixed, reversible map between text and token ids."""

    name: str
    """Name shown in messages: `bytes`, or the path of the file."""
    fingerprint: str
    """Hex digest of everything the ids depend on; equal fingerprints give equal ids."""
    vocab_size: int
    """One more than the largest id, control tokens included."""
    bos_id: int | None
    """Id of the token that begins a document; None if the tokenizer has no such token."""
    eos_id: int | None
    """Id of the token that ends a document; None if the tokenizer has no such token."""
    pad_id: int
    """Id that fills the rest of a row; it is never attended to and never a label."""
    controls: Mapping[str, int]
    """Written form of every control token -> its id."""
    dialect: str | None = None
    """Tool dialect of the tokenizer's model (`maverick_jax.text.chat`); None if its folder has no known template."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as ordinary text, without begin or end tokens. Raises InputError for text that is not valid
        Unicode (it contains a surrogate)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on several threads if the tokenizer library supports it."""
        for text in texts:
            require_unicode(text)
        return self._encode_batch(texts)

    def decode(self, ids: Iterable[int], *, controls: bool = False) -> str:
        """Text of `ids`; `decode(encode(text)) == text`. Invalid UTF-8 and ids outside the vocabulary become U+FFFD.
        Control tokens are left out; with `controls` they appear in their written form."""
        parts = []
        for kind, group in itertools.groupby(map(int, ids), key=self._kind):
            if kind == "control":
                parts += [self._written[i] for i in group] if controls else []
            elif kind == "ordinary":
                parts.append(self._decode(list(group)))
            else:
                parts += [UNKNOWN_ID for _ in group]
        return "".join(parts)

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that an ordinary token stands for, whatever is beside it; None for any other id, and where a
        token's text depends on its neighbors."""
        return None

    @abc.abstractmethod
    def starts(self, text: str, ids: Sequence[int]) -> list[int]:
        """For each id of `ids` (= `encode(text)`): index in `text` of the character that contains the id's first
        byte."""

    @abc.abstractmethod
    def save(self, directory: str | pathlib.Path) -> None:
        """Write the files from which `load_tokenizer(directory)` restores this tokenizer."""

    @abc.abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids that are all ordinary tokens of the vocabulary."""

    def _set_controls(self, controls: Mapping[str, int]) -> None:
        self.controls = dict(controls)
        self._written = {i: text for text, i in controls.items()}

    def _kind(self, token: int) -> str:
        if token in self._written:
            return "control"
        return "ordinary" if 0 <= token < self.vocab_size else "unknown"


def read_file(path: pathlib.Path) -> bytes:
    """Content of a tokenizer file. Raises InputError if it cannot be read or is larger than MAX_BYTES."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, the limit for a tokenizer file")
    return content


def digest(*parts: bytes) -> str:
    """SHA-256 hex digest of `parts`; each part is hashed with its length, so that boundaries matter."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def require_unicode(text: str) -> None:
    """Raises InputError if `text` contains a surrogate, which UTF-8 cannot encode; TypeError if it is not a str."""
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

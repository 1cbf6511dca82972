"""Text to token ids and back, behind one interface, and how a tokenizer is found on disk.

Text is always ordinary text: `encode` never returns a control id, whatever strings the text holds. Control tokens
(begin and end of text, padding, roles) are placed by code, by id, through `controls`.
"""

import abc
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from maverick_jax.errors import InputError
from maverick_jax.section import did_you_mean

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


def load_tokenizer(source: str | pathlib.Path) -> Tokenizer:
    """The tokenizer called `bytes`, in a `tokenizer.json` or a tiktoken `tokenizer.model`, or in a folder that holds
    one of them or was written by `Tokenizer.save` (a run directory, one of its checkpoints, a Hugging Face folder).
    Raises InputError."""
    if str(source) == BYTES:
        return _named(BYTES)
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        found = find_tokenizer(path)
        if found is None:
            raise InputError(f"tokenizer {path}: the folder holds none of {JSON_FILE}, {RANKS_FILE}, {NAME_FILE}")
        path = found
    if not path.is_file():
        hint = did_you_mean(str(source), [BYTES])
        raise InputError(f"tokenizer {source}: no such file or folder; expected `{BYTES}`, a {JSON_FILE}, "
                         f"a {RANKS_FILE} or a folder that holds one{hint}")  # fmt: skip
    if path.name == NAME_FILE:
        return _named(read_file(path).decode("utf-8", "replace").strip(), path)
    if path.suffix == ".json":
        from maverick_jax.text.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path)
    if path.suffix == ".model":
        from maverick_jax.text.llama4 import Llama4Tokenizer

        return Llama4Tokenizer(path)
    raise InputError(f"tokenizer {path}: expected a file that ends in .json (tokenizers) or .model (tiktoken)")


def _named(name: str, origin: pathlib.Path | None = None) -> Tokenizer:
    """A tokenizer that needs no file. A name read from a file is only ever compared, never opened."""
    from maverick_jax.text.byte_level import ByteTokenizer

    if name != BYTES:
        raise InputError(f"{origin}: line 1: no tokenizer is called {name[:40]!r}; expected `{BYTES}`")
    return ByteTokenizer()


def find_tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    """The tokenizer's file in `folder`, or in the run directory that `folder` is a checkpoint of; None without one."""
    absolute = folder.resolve()
    folders = [folder, *[p.parent for p in (absolute, absolute.parent) if p.name == "checkpoints"]]
    for place in folders:
        for name in (JSON_FILE, RANKS_FILE, NAME_FILE):
            if (place / name).is_file():
                return place / name
    return None


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

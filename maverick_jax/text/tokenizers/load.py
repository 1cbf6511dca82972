"""Find a tokenizer on disk and load it."""

import pathlib

from maverick_jax.errors import InputError
from maverick_jax.settings.section import did_you_mean
from maverick_jax.text.tokenizers.base import BYTES, JSON_FILE, NAME_FILE, RANKS_FILE, Tokenizer, read_file
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer, ThinkingByteTokenizer

NAMES = {tokenizer.name: tokenizer for tokenizer in (ByteTokenizer, ThinkingByteTokenizer)}
"""Tokenizers that need no file."""


def load_tokenizer(source: str | pathlib.Path) -> Tokenizer:
    """Load a tokenizer. `source` is `bytes`, `bytes_thinking`, a `tokenizer.json`, a tiktoken `tokenizer.model`, or a
    folder that contains one of these files or was written by `Tokenizer.save` (a run directory, one of its checkpoints,
    a Hugging Face folder). Raises InputError if there is no tokenizer or its file is malformed."""
    if str(source) in NAMES:
        return _named(str(source))
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        found = find_tokenizer(path)
        if found is None:
            raise InputError(f"tokenizer {path}: the folder contains none of {JSON_FILE}, {RANKS_FILE}, {NAME_FILE}")
        path = found
    if not path.is_file():
        hint = did_you_mean(str(source), NAMES)
        raise InputError(f"tokenizer {source}: no such file or folder; expected `{BYTES}`, a {JSON_FILE}, "
                         f"a {RANKS_FILE} or a folder that contains one{hint}")  # fmt: skip
    if path.name == NAME_FILE:
        return _named(read_file(path).decode("utf-8", "replace").strip(), path)
    if path.suffix == ".json":
        from maverick_jax.text.tokenizers.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(path)
    if path.suffix == ".model":
        from maverick_jax.text.tokenizers.llama4 import Llama4Tokenizer

        return Llama4Tokenizer(path)
    raise InputError(f"tokenizer {path}: expected a file that ends in .json (tokenizers) or .model (tiktoken)")


def _named(name: str, origin: pathlib.Path | None = None) -> Tokenizer:
    """The tokenizer called `name`. A name that comes from a file is only compared with known names, never opened."""
    if name not in NAMES:
        expected = " or ".join(f"`{known}`" for known in NAMES)
        raise InputError(f"{origin}: line 1: no tokenizer is called {name[:40]!r}; expected {expected}")
    return NAMES[name]()


def find_tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    """The tokenizer file in `folder`, or, if `folder` is a checkpoint, in its run directory; None if there is none."""
    absolute = folder.resolve()
    folders = [folder, *[p.parent for p in (absolute, absolute.parent) if p.name == "checkpoints"]]
    for candidate in folders:
        for name in (JSON_FILE, RANKS_FILE, NAME_FILE):
            if (candidate / name).is_file():
                return candidate / name
    return None

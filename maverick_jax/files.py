"""Files and folders beside arrays: JSON, read safely, and folders that appear whole.

Writing happens in a folder beside the target that takes the target's name only when it is complete.
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

from maverick_jax.errors import InputError

_MAX_JSON_BYTES, _MAX_DEPTH = 4 * 2**20, 32


# ---- reading -------------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path, most_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError if it is absent, huge, not JSON, or says a key twice."""

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > most_bytes:
        raise InputError(f"{path}: {path.stat().st_size} bytes is too much; at most {most_bytes} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if _deeper_than(_MAX_DEPTH, value):  # what is deep cannot even be quoted: that takes a call a level
        raise InputError(f"{path}: nested deeper than {_MAX_DEPTH} levels")
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _deeper_than(depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(depth):
        inner = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)]
        level = list(itertools.chain.from_iterable(inner))
    return any(isinstance(v, dict | list) for v in level)


def listed(problems: list[str], most: int = 20) -> str:
    """Problems as one text, the first `most` in full."""
    rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    return "\n  ".join([f"{len(problems)} problem(s)", *problems[:most]]) + rest


# ---- strict JSON: hooks of Python's parser that refuse what it lets through ------------------------------------------


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that raises ValueError for a key that is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r:.80} is given twice")
        found[key] = value
    return found


def no_constant(text: str) -> NoReturn:
    """`parse_constant` that raises ValueError: NaN and the infinities are not JSON."""
    raise ValueError(f"{text} is not a JSON number")


# ---- writing -------------------------------------------------------------------------------------------------------


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_atomically(path: pathlib.Path, content: bytes | memoryview) -> None:
    """Write a file so that it has its old contents or its new ones, never a part of them, also after a power cut."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def require_new(path: pathlib.Path) -> None:
    """Raises InputError unless `path` is free, or an empty folder."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"{path}: exists already; choose a path that does not")


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `path` when the block ends well, and vanishes when it does not.

    Raises InputError if `path` exists already and is not an empty folder: nothing is ever written over.
    """
    require_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    aside.mkdir()
    try:
        yield aside
        for file in aside.iterdir():
            sync(file)
        os.rename(aside, path)
        sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sync(path: pathlib.Path) -> None:
    """Waits until the disk holds it: a rename that survives a crash must not name an empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

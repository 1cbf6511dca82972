"""Read JSON files safely, and write folders that appear only when they are complete.

A folder is written under a temporary name next to the target and renamed at the end.
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from maverick_jax.errors import InputError

_MAX_JSON_BYTES, _MAX_DEPTH = 4 * 2**20, 32


# ---- reading -------------------------------------------------------------------------------------------------------


def read_json(path: pathlib.Path, most_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError if the file is missing or larger than `most_bytes`, or if it is not
    a JSON object, has a duplicate key or is nested too deeply."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > most_bytes:
        raise InputError(f"{path}: {path.stat().st_size} bytes; expected at most {most_bytes}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if _deeper_than(_MAX_DEPTH, value):  # even printing a deep value may exceed the recursion limit
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
    """Problems as one text, with the first `most` in full."""
    rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    return "\n  ".join([f"{len(problems)} problem(s)", *problems[:most]]) + rest


# ---- strict JSON: hooks that reject duplicate keys, NaN and Infinity, which Python's parser accepts ------------------


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` that raises ValueError for a duplicate key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r:.80} is given twice")
        found[key] = value
    return found


def no_constant(text: str) -> NoReturn:
    """`parse_constant` that raises ValueError, since NaN and the infinities are not JSON."""
    raise ValueError(f"{text} is not a JSON number")


# ---- writing -------------------------------------------------------------------------------------------------------


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_atomically(path: pathlib.Path, content: bytes | memoryview) -> None:
    """Write a file so that it has its old contents or its new ones, never a part of them, also after a power cut."""
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "wb", opener=no_links) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def no_links(path: str, flags: int) -> int:
    """`opener` of `open` for names that others may guess: a link there is an OSError instead of a change elsewhere."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def open_lock(path: pathlib.Path) -> BinaryIO:
    """Opens a lock file, which only this user can read; it is created if it is missing, never truncated, and never
    reached through a link (OSError)."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b")


def require_new(path: pathlib.Path) -> None:
    """Raises InputError unless `path` does not exist or is an empty folder."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise InputError(f"{path}: already exists; choose another path")


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that is renamed to `path` when the block succeeds, and deleted when it raises.

    Raises InputError if `path` already exists and is not an empty folder, so nothing is overwritten.
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
    """Flush a file or folder to disk, so that after a crash a renamed file is not empty."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

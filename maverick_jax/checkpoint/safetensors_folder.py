"""A folder of safetensors files with an index, read and written safely. Knows nothing of models.

Reading trusts nothing: names of files come from an index that may be hostile, so they must be plain names of
regular files inside the folder, and every tensor must be stored exactly once. Files are memory-mapped.
Writing happens in a folder beside the target that takes the target's name only when it is complete.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from maverick_jax.errors import InputError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""Tensor types that hold model weights; quantised ones are not read."""

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]+\.safetensors")
_MAX_JSON_BYTES = 256 * 2**20
_GB = 10**9


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a folder, not read yet."""

    file: pathlib.Path
    type: str
    """Its safetensors type, e.g. `BF16`."""
    shape: tuple[int, ...]
    offset: int
    """First byte in the file."""

    def open(self) -> np.ndarray:
        """A read-only, memory-mapped array: bytes are read when they are used."""
        if 0 in self.shape:
            return np.zeros(self.shape, DTYPES[self.type])
        return np.memmap(self.file, DTYPES[self.type], "r", offset=self.offset, shape=self.shape)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError if it is absent, huge, not JSON, or says a key twice."""

    def once(pairs):
        seen = dict(pairs)
        if len(seen) != len(pairs):
            keys = [key for key, _ in pairs]
            raise InputError(f"{path}: key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
        return seen

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes is too much for a JSON file of this kind")
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_folder(folder: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of `folder`, by name, from its index or its single file; headers are read, tensors are not.

    Raises InputError that lists all that is wrong: files outside the folder, tensors stored twice or nowhere.
    """
    index_path = folder / INDEX_FILE
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index_path}: expected `weight_map`, a mapping of tensor names to file names")
        names = list(dict.fromkeys(weight_map.values()))
    elif (folder / SINGLE_FILE).exists():
        weight_map, names = None, [SINGLE_FILE]
    else:
        raise InputError(f"{folder}: holds neither {INDEX_FILE} nor {SINGLE_FILE}")

    problems: list[str] = []
    found: dict[str, Stored] = {}
    for name in names:
        for tensor, stored in _read_header(_contained(folder, name, index_path)).items():
            if tensor in found:
                problems.append(f"{tensor} is stored in both {found[tensor].file.name} and {name}")
            elif weight_map is not None and weight_map.get(tensor) != name:
                problems.append(f"{tensor} is stored in {name}; the index says {weight_map.get(tensor, 'nothing')}")
            found.setdefault(tensor, stored)
    problems += [f"{t} is not in {f}, where the index has it" for t, f in (weight_map or {}).items() if t not in found]
    if problems:
        raise InputError(f"{folder}: {listed(problems)}")
    return found


def listed(problems: list[str], most: int = 20) -> str:
    """Problems as one text, the first `most` in full."""
    rest = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
    return "\n  ".join([f"{len(problems)} problem(s)", *problems[:most]]) + rest


def _contained(folder: pathlib.Path, name: Any, index_path: pathlib.Path) -> pathlib.Path:
    """The file `name` of `folder`. Raises InputError unless it is a plain name of a regular file inside it."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise InputError(f"{index_path}: {name!r} is not a file name; expected a plain name that ends in .safetensors")
    path, root = folder / name, folder.resolve()
    if not path.is_file():
        raise InputError(f"{path}: no such file, though {index_path.name} names it")
    target = path.resolve()
    # The hub's own cache links snapshots/<revision>/<name> to blobs/<hash> of the same repository.
    in_hub_cache = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if target.parent != root and not in_hub_cache:
        raise InputError(f"{path}: is a link to {target}, outside the folder; copy the file into the folder")
    return path


def _read_header(path: pathlib.Path) -> dict[str, Stored]:
    try:
        with safetensors.safe_open(path, framework="numpy"):  # the library checks lengths, offsets and overlaps
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


# ---- writing -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Planned:
    """One tensor to be written; `make` is called once, when its file is being put together."""

    name: str
    num_bytes: int
    make: Callable[[], np.ndarray]


def write_tensors(folder: pathlib.Path, tensors: list[Planned], max_shard_gb: float, num_parameters: int) -> None:
    """Writes `tensors`, in order, into files of at most `max_shard_gb` (10^9 bytes each; a larger tensor has a file
    of its own) and the index when there are several. Host memory: one file at a time."""
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.num_bytes for t in shards[-1]) + tensor.num_bytes > max_shard_gb * _GB:
            shards.append([])
        shards[-1].append(tensor)

    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE_FILE]
    for name, shard in zip(names, shards, strict=True):
        # transformers refuses a file that does not say which framework's layout it holds
        safetensors.numpy.save_file({t.name: t.make() for t in shard}, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {t.name: name for name, shard in zip(names, shards, strict=True) for t in shard}
        sizes = {"total_size": sum(t.num_bytes for t in tensors), "total_parameters": num_parameters}
        write_json(folder / INDEX_FILE, {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))})


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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
            if file.is_file():
                file.chmod(aside.stat().st_mode & 0o666)  # the library makes files that only their owner reads
            _sync(file)
        os.rename(aside, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: pathlib.Path) -> None:
    """Waits until the disk holds it: a rename that survives a crash must not name an empty file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

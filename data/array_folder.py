"""Folders of arrays on disk: built once and atomically, verified when opened, read through the page cache.

A folder contains one flat little-endian file per array and `contents.json`, which is written last and has sizes and
checksums. The folder is built under another name and renamed when complete, so a folder under its own name is finished.
It belongs to one user: nobody else can read the folder, nor the one that it is in.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.files import open_lock, write_atomically

CONTENTS = "contents.json"
BLOCK = 1 << 24
"""Bytes per checksum."""
MAX_BLOCKS_CHECKED = 64
"""Number of blocks that opening verifies. An array with more (1 GiB) is sampled evenly, first and last block
included."""

_log = logging.getLogger(__name__)


class DamagedFolder(Exception):
    """The folder's files do not match its contents file."""


@dataclasses.dataclass(frozen=True)
class ArrayFolder:
    """One-dimensional read-only arrays by name. It is pickled as its path, so that all processes map the same pages."""

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    meta: dict
    """Metadata from the builder."""
    digest: str
    """SHA-256 of the arrays. It depends only on their contents."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __reduce__(self):
        return _reopen, (self.path,)


def _reopen(path: pathlib.Path) -> ArrayFolder:
    return open_folder(path, verify=False)


def open_folder(path: pathlib.Path, *, verify: bool = True) -> ArrayFolder:
    """Opens a finished folder. Raises FileNotFoundError if there is none, and DamagedFolder if it has changed since it
    was written."""
    text = (path / CONTENTS).read_text("utf-8", "replace")
    try:
        contents = json.loads(text)
        arrays = {}
        for name, entry in contents["arrays"].items():
            arrays[name] = _mapped(array_file(path, name), entry["bytes"], np.dtype(entry["dtype"]))
            if verify:
                _check(name, arrays[name], entry["crc32"])
        return ArrayFolder(path, arrays, contents["meta"], contents["sha256"])
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise DamagedFolder(f"{type(error).__name__}: {error}") from None


def build_once(path: pathlib.Path, build: Callable[[pathlib.Path], None]) -> ArrayFolder:
    """Opens the folder at `path`. If it is missing or damaged, `build` first fills it under a temporary name.

    Processes that share the disk wait for the process that builds. After an interrupted build, the next call of `build`
    finds the files that it left. Raises InputError if the folder cannot be written.
    """
    try:
        _make_private(path.parent)
        with contextlib.suppress(FileNotFoundError, DamagedFolder):
            return open_folder(path)
        with _locked(path.with_name(f"{path.name}.lock")):
            return _build_locked(path, build)
    except OSError as error:
        raise InputError(
            f"cache folder {path.parent}: {error}; set data.cache_dir or MAVERICK_CACHE to another folder"
        ) from None


def _build_locked(path: pathlib.Path, build: Callable[[pathlib.Path], None]) -> ArrayFolder:
    try:
        return open_folder(path)
    except FileNotFoundError:
        pass
    except DamagedFolder as damage:
        _log.warning("cache %s is damaged (%s): rebuilding it", path, damage)
    unfinished = path.with_name(f"{path.name}.partial")
    _make_private(unfinished)
    build(unfinished)
    for file in unfinished.iterdir():
        file.chmod(0o600)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)
    return open_folder(path)


def _make_private(folder: pathlib.Path) -> None:
    """Creates a folder that only this user can enter. One of this user's that others can enter is closed to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        with contextlib.suppress(OSError):  # a disk that is read-only or has no modes
            folder.chmod(0o700)


def seal(folder: pathlib.Path, dtypes: Mapping[str, np.dtype], meta: dict) -> None:
    """Writes the contents file of a folder whose array files are complete."""
    entries, whole = {}, hashlib.sha256()
    for name, dtype in sorted(dtypes.items()):
        raw = _mapped(array_file(folder, name), None, np.dtype(np.uint8))
        sums = []
        for block in _blocks(raw):
            sums.append(zlib.crc32(block))
            whole.update(block)
        whole.update(f"{name} {dtype.str} {raw.size}".encode())
        entries[name] = {"dtype": dtype.str, "bytes": int(raw.size), "crc32": sums}
    contents = {"arrays": entries, "meta": meta, "sha256": whole.hexdigest()}
    write_atomically(folder / CONTENTS, json.dumps(contents).encode() + b"\n")


def write_array(folder: pathlib.Path, name: str, array: np.ndarray) -> np.dtype:
    """Writes the file of one array. Returns its dtype on disk, for `seal`."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    write_atomically(array_file(folder, name), array.view(np.uint8).data)
    return array.dtype


def array_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    # Names may come from the contents file, so a name must not lead out of the folder.
    if not name.isidentifier():
        raise ValueError(f"{name!r} is not a valid array name")
    return folder / f"{name}.bin"


def _mapped(path: pathlib.Path, size: int | None, dtype: np.dtype) -> np.ndarray:
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise DamagedFolder(f"{path.name} has {actual} bytes; expected {size}")
    if actual == 0:
        return np.empty(0, dtype)
    # a plain view, because indexing an np.memmap object is several times slower
    return np.memmap(path, dtype, "r").view(np.ndarray)


def _check(name: str, array: np.ndarray, sums: list[int]) -> None:
    blocks = list(_blocks(array.view(np.uint8)))
    if len(blocks) != len(sums):
        raise DamagedFolder(f"{name}: {len(blocks)} blocks, {len(sums)} checksums")
    sample = np.linspace(0, len(sums) - 1, min(len(sums), MAX_BLOCKS_CHECKED)).round().astype(int)
    for block in np.unique(sample).tolist():
        if zlib.crc32(blocks[block]) != sums[block]:
            raise DamagedFolder(f"{name}: block {block} fails its checksum")


def _blocks(raw: np.ndarray) -> Iterator[memoryview]:
    return (raw[begin : begin + BLOCK].data for begin in range(0, raw.size, BLOCK))


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds the lock on the file `path`. The operating system releases the lock when the process dies."""
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process to build %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

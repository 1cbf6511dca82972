"""Arrays kept on disk: built once, whole or not at all, checked when opened, read through the page cache.

A folder holds one flat little-endian file per array and `contents.json`, written last, with sizes and checksums. It is
built under another name and renamed when complete, so that a folder under its own name is a finished one.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import pathlib
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically

CONTENTS = "contents.json"
BLOCK = 1 << 24
"""Bytes per checksum."""
MAX_BLOCKS_CHECKED = 64
"""Of a larger array (1 GiB) opening checks this many blocks, evenly spread, first and last included."""

_log = logging.getLogger(__name__)


class DamagedFolder(Exception):
    """The folder does not hold what its contents file says."""


@dataclasses.dataclass(frozen=True)
class ArrayFolder:
    """One-dimensional read-only arrays by name. Pickles as its path, so that every process maps the same pages."""

    path: pathlib.Path
    arrays: dict[str, np.ndarray]
    meta: dict
    """What the builder wanted to remember."""
    digest: str
    """SHA-256 of the arrays: equal for equal contents, wherever and whenever they were made."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __reduce__(self):
        return _reopen, (self.path,)


def _reopen(path: pathlib.Path) -> ArrayFolder:
    return open_folder(path, verify=False)


def open_folder(path: pathlib.Path, *, verify: bool = True) -> ArrayFolder:
    """Raises FileNotFoundError where there is no finished folder, DamagedFolder where it is not what was written."""
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
    """The folder at `path`, which `build` fills under a temporary name if it is missing or damaged.

    Processes that share the disk wait for the one that builds. What an interrupted build has left is there when
    `build` is called again. Raises InputError where nothing can be written.
    """
    try:
        with contextlib.suppress(FileNotFoundError, DamagedFolder):
            return open_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.lock")):
            return _build_locked(path, build)
    except OSError as error:
        raise InputError(
            f"cache folder {path.parent}: {error}; data.cache_dir or MAVERICK_CACHE chooses another"
        ) from None


def _build_locked(path: pathlib.Path, build: Callable[[pathlib.Path], None]) -> ArrayFolder:
    try:
        return open_folder(path)
    except FileNotFoundError:
        pass
    except DamagedFolder as damage:
        _log.warning("cache %s is damaged (%s): building it again", path, damage)
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.mkdir(exist_ok=True)
    build(unfinished)
    if path.exists():
        shutil.rmtree(path)
    unfinished.rename(path)
    return open_folder(path)


def seal(folder: pathlib.Path, dtypes: Mapping[str, np.dtype], meta: dict) -> None:
    """Write the contents file of a folder whose array files are complete."""
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
    """Write one array's file; returns its dtype on disk, for `seal`."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    write_atomically(array_file(folder, name), array.view(np.uint8).data)
    return array.dtype


def array_file(folder: pathlib.Path, name: str) -> pathlib.Path:
    # Names come from the contents file too: one that leads out of the folder must not be followed.
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no array's name")
    return folder / f"{name}.bin"


def _mapped(path: pathlib.Path, size: int | None, dtype: np.dtype) -> np.ndarray:
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise DamagedFolder(f"{path.name} has {actual} bytes; expected {size}")
    if actual == 0:
        return np.empty(0, dtype)
    # A plain view: indexing an np.memmap object costs several times as much.
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
    """Hold the lock file at `path`; the system releases it when its holder dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("waiting for another process that builds %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

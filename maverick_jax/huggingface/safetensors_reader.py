"""Read untrusted safetensors files by byte range.

A file is opened, checked to be the one whose header was read, and read with `pread` into our own memory. Nothing is
memory-mapped, so a file that shrinks raises an error instead of a signal, and memory use is bounded. Tensor names are
labels, never paths. File names come from an index that may be hostile, so they must be plain names of regular files in
the folder. Format: https://huggingface.co/docs/safetensors
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.files import no_constant, once, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""Tensor types that can be read, by their safetensors name."""
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

MAX_HEADER_BYTES = 8 * 2**20
"""Longest header. The format allows 100 MB; Maverick with unfused experts in a single file would need 3 MB."""
MAX_INDEX_BYTES = 16 * 2**20
MAX_FILES, MAX_TENSORS, MAX_DIMENSIONS, MAX_SIZE = 4096, 200_000, 8, 2**40

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\.safetensors")
_TENSOR_NAME = re.compile(r"[A-Za-z0-9._:-]{1,256}")
_WORTH_A_SEEK = 64 * 2**10
_SLAB_BYTES = 4 * 2**20


# ---- files and tensors ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class File:
    """A file's identity when its header was read."""

    path: pathlib.Path
    size: int
    modified: int
    """Modification time in nanoseconds."""
    inode: int

    @classmethod
    def at(cls, path: pathlib.Path) -> "File":
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns, status.st_ino)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor to read from. Raises InputError if the file has changed, before or after the block."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be opened: {error.strerror}") from None
        try:
            self._require_same(descriptor)
            yield descriptor
            self._require_same(descriptor)
        finally:
            os.close(descriptor)

    def _require_same(self, descriptor: int) -> None:
        now = os.fstat(descriptor)
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (self.size, self.modified, self.inode):
            raise InputError(f"{self.path}: changed while it was read; try again when nothing writes to it")

    def read_into(self, descriptor: int, buffer: np.ndarray, offset: int) -> None:
        """Fill `buffer` (contiguous uint8) with the bytes from `offset` on."""
        left = memoryview(buffer.reshape(-1))  # pyright: ignore[reportArgumentType]
        while left:
            try:
                count = os.preadv(descriptor, [left], offset)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
            if not count:
                raise InputError(
                    f"{self.path}: changed while it was read: it ends at byte {offset} but had {self.size} bytes before"
                )
            left, offset = left[count:], offset + count


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    file: File
    type: str
    """Its safetensors type, e.g. `BF16`."""
    shape: tuple[int, ...]
    offset: int
    """Index of its first byte in the file."""

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.type]

    def read(
        self,
        index: Sequence[slice] | None = None,
        shape: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Read the part `index` (slices of step 1; None means all) in row-major order, into `out` if given.

        `shape`: a shape of the same size; the tensor is read as if reshaped to it. Beyond the result it takes a few MiB
        of memory. Raises InputError if the file has changed.
        """
        shape = list(self.shape if shape is None else shape)
        index = [slice(None)] * len(shape) if index is None else index
        bounds = [part.indices(n)[:2] for part, n in zip(index, shape, strict=True)]
        found = np.empty([stop - start for start, stop in bounds], self.dtype) if out is None else out
        # View the tensor as a matrix: the last axis that is cut and all after it form a row, the axes before it number
        # the rows.
        cut = max((axis for axis, n in enumerate(shape) if found.shape[axis] < n), default=0)
        item = math.prod(shape[cut + 1 :]) * self.dtype.itemsize
        rows = np.zeros(1, np.int64)
        for n, (start, stop) in zip(shape[:cut], bounds[:cut], strict=True):
            rows = (rows[:, None] * n + np.arange(start, stop)).reshape(-1)
        width, columns = (shape[cut] * item, [edge * item for edge in bounds[cut]]) if shape else (item, [0, item])
        if found.size:
            self._read_rows(rows, width, columns, found.reshape(-1).view(np.uint8).reshape(len(rows), -1))
        return found

    def digest(self) -> bytes:
        """SHA-256 of its type, its shape and all of its bytes, read in parts of a few MiB. Raises InputError if the
        file has changed."""
        whole = hashlib.sha256(repr((self.type, list(self.shape))).encode())
        left, at = math.prod(self.shape) * self.dtype.itemsize, self.offset
        buffer = np.empty(min(left, _SLAB_BYTES), np.uint8)
        with self.file.opened() as descriptor:
            while left:
                part = buffer[:left]
                self.file.read_into(descriptor, part, at)
                whole.update(part.data)
                left, at = left - part.size, at + part.size
        return whole.digest()

    def _read_rows(self, rows: np.ndarray, width: int, columns: list[int], into: np.ndarray) -> None:
        """Fill `into` with the bytes `columns` (first, end) of some rows of a matrix with `width` bytes per row."""
        first, last = columns
        near = width - (last - first) < _WORTH_A_SEEK
        most = max(1, _SLAB_BYTES // width) if near else 1
        with self.file.opened() as descriptor:
            for at, count in _runs(rows, most):
                start = self.offset + int(rows[at]) * width
                if count == 1:
                    self.file.read_into(descriptor, into[at], start + first)
                else:  # rows with small gaps: read all bytes of several rows, then select the columns
                    slab = np.empty((count, width), np.uint8)
                    self.file.read_into(descriptor, slab, start)
                    into[at : at + count] = slab[:, first:last]


def _runs(rows: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(index in `rows`, length) of each stretch of consecutive row numbers, at most `most` long."""
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for start, stop in itertools.pairwise(edges):
        for at in range(start, stop, most):
            yield at, min(most, stop - at)


# ---- headers -------------------------------------------------------------------------------------------------------


def read_header(path: pathlib.Path) -> dict[str, Stored]:
    """Every tensor of the file, by name. Raises InputError for any violation of the format.

    It is stricter than the safetensors library: duplicate names, names that could be paths and tensors without elements
    are errors.
    """
    try:
        file = File.at(path)
        with file.opened() as descriptor:
            text = _header_text(file, descriptor)
        header = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
        return _tensors(header, file, 8 + len(text))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from None


def _header_text(file: File, descriptor: int) -> bytes:
    if file.size < 8:
        raise ValueError(f"{file.size} bytes")
    length = np.empty(8, np.uint8)
    file.read_into(descriptor, length, 0)
    count = int.from_bytes(length.tobytes(), "little")
    if count > min(MAX_HEADER_BYTES, file.size - 8):
        raise ValueError(f"a header of {count} bytes in a file of {file.size}; expected at most {MAX_HEADER_BYTES}")
    text = np.empty(count, np.uint8)
    file.read_into(descriptor, text, 8)
    if text[:1].tobytes() != b"{":
        raise ValueError("its header does not begin with {")
    # Parsed, hostile JSON takes a hundred times its size in memory, so count lists and objects before parsing.
    if np.count_nonzero(text == ord("{")) + np.count_nonzero(text == ord("[")) > 3 * MAX_TENSORS:
        raise ValueError("its header has too many lists and objects")
    return text.tobytes()


def _tensors(header: dict[str, Any], file: File, data: int) -> dict[str, Stored]:
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a mapping of strings")
    spans = {name: _span(name, entry) for name, entry in header.items()}
    end = 0
    for name, (first, last) in sorted(spans.items(), key=lambda pair: pair[1]):
        if first != end:
            raise ValueError(f"{name} begins at byte {first} of the data; expected {end}")
        end = last
    if data + end != file.size:
        raise ValueError(f"its tensors end at byte {data + end}; the file has {file.size}")
    return {
        name: Stored(file, entry["dtype"], tuple(entry["shape"]), data + spans[name][0])
        for name, entry in header.items()
    }


def _span(name: str, entry: Any) -> tuple[int, int]:
    """First byte and end of a tensor in the data. Raises ValueError unless they match its shape and type."""
    if not _TENSOR_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.80} is not a valid tensor name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: expected dtype, shape and data_offsets")
    kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _ITEM_BYTES:
        raise ValueError(f"{name}: unknown type {kind!r:.40}")
    if not _whole(shape, 1) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name}: shape {shape!r:.80} is not up to {MAX_DIMENSIONS} positive whole numbers")
    if not _whole(span, 0) or len(span) != 2:
        raise ValueError(f"{name}: data_offsets {span!r:.80} are not two whole numbers")
    if span[1] - span[0] != math.prod(shape) * _ITEM_BYTES[kind]:
        raise ValueError(f"{name}: {span[1] - span[0]} bytes for {kind} {shape}")
    return span[0], span[1]


def _whole(values: Any, least: int) -> bool:
    return isinstance(values, list) and all(type(n) is int and least <= n <= MAX_SIZE * 16 for n in values)


# ---- folders -------------------------------------------------------------------------------------------------------


def read_folder(folder: pathlib.Path) -> tuple[dict[str, Stored], list[str]]:
    """Every tensor of `folder`, by name, and the problems of its index: tensors that are duplicated, in another file
    than listed, or missing.

    Only headers are read. Raises InputError for files that are not safetensors or lie outside the folder.
    """
    index_path = folder / INDEX_FILE
    weight_map, files = None, [SINGLE_FILE]
    if index_path.exists():
        weight_map = read_json(index_path, MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index_path}: expected `weight_map`, a mapping of tensor names to file names")
        if bad := [name for name in weight_map.values() if not isinstance(name, str)]:
            raise InputError(f"{index_path}: {bad[0]!r:.80} is not a file name")
        files = list(dict.fromkeys(weight_map.values()))
    elif not (folder / SINGLE_FILE).exists():
        raise InputError(f"{folder}: holds neither {INDEX_FILE} nor {SINGLE_FILE}")
    if len(files) > MAX_FILES or len(weight_map or ()) > MAX_TENSORS:
        raise InputError(f"{index_path}: more than {MAX_FILES} files or {MAX_TENSORS} tensors")

    problems: list[str] = []
    found: dict[str, Stored] = {}
    for name in files:
        for tensor, stored in read_header(_contained(folder, name, index_path)).items():
            if tensor in found:
                problems.append(f"duplicated: {tensor} is stored in both {found[tensor].file.path.name} and {name}")
            elif weight_map is not None and weight_map.get(tensor) != name:
                listed = f"in {weight_map[tensor]!r}" if tensor in weight_map else "nowhere"
                problems.append(f"index: {tensor} is stored in {name} but listed {listed}")
            found.setdefault(tensor, stored)
        if len(found) > MAX_TENSORS:
            raise InputError(f"{folder}: more than {MAX_TENSORS} tensors")
    nowhere = [(t, f) for t, f in (weight_map or {}).items() if t not in found]
    return found, problems + [f"index: {t!r:.80} is not in {f}, where it is listed" for t, f in nowhere]


def _contained(folder: pathlib.Path, name: Any, index_path: pathlib.Path) -> pathlib.Path:
    """The file `name` of `folder`. Raises InputError unless it is the plain name of a regular file in the folder."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise InputError(
            f"{index_path}: {name!r:.80} is not a file name; expected a plain name that ends in .safetensors"
        )
    path, root = folder / name, folder.resolve()
    if not path.is_file():
        raise InputError(f"{path}: no such file, but {index_path.name} lists it")
    require_inside(path, root)
    return path


def require_inside(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises InputError for a link out of a model's folder."""
    root, target = folder.resolve(), path.resolve()
    # The Hugging Face cache links snapshots/<revision>/<name> to blobs/<hash> of the same repository.
    in_hub_cache = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    if not target.is_relative_to(root) and not in_hub_cache:
        raise InputError(f"{path}: is a link to {target}, outside the folder; copy the file into the folder")

"""Write safetensors files as a stream, without holding a whole tensor, and verify them by reading them back.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little-endian; the header, JSON
of name -> {dtype, shape, data_offsets}, padded with spaces; the tensors' bytes, row-major, without gaps. All sizes are
known in advance, so the header is written first and each tensor has a fixed position.
"""

import collections
import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from maverick_jax.errors import MaverickError
from maverick_jax.files import write_json
from maverick_jax.huggingface.safetensors_reader import INDEX_FILE, SINGLE_FILE, read_header

ITEM_BYTES = {"I64": 8, "F32": 4, "I32": 4, "BF16": 2}
_GB = 10**9
_AUDIT_BYTES = 256 * 2**20
"""Bytes after which written data is flushed to disk and read back, while more is written."""
_READ_BYTES = 4 * 2**20
_THREADS = min(8, 1 + len(os.sched_getaffinity(0)))
"""Threads that compute blocks; more than cores, since they wait for different things (disk, memory, arithmetic)."""

Made = list[tuple[str, np.ndarray]]
"""(tensor name, its next bytes as a contiguous array), for some of the tensors."""


class ExportFailed(MaverickError):
    """Files could not be written, or the data read back differs from what was written."""


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """A tensor's entry in the header of a file."""

    name: str
    type: str
    """Safetensors type: a key of `ITEM_BYTES`."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.type]


@dataclasses.dataclass(frozen=True)
class Planned:
    """Tensors that are computed together and written to the same file."""

    headers: tuple[TensorHeader, ...]
    parts: Callable[[], Iterator[Callable[[], Made]]]
    """Functions that are each called once, in any thread, and return the next bytes of some of the tensors."""

    @property
    def num_bytes(self) -> int:
        return sum(header.num_bytes for header in self.headers)


def total_bytes(plan: Iterable[Planned]) -> int:
    return sum(planned.num_bytes for planned in plan)


def write_tensors(
    folder: pathlib.Path,
    plan: Sequence[Planned],
    max_shard_gb: float,
    num_parameters: int,
    wrote: Callable[[int], Any] = lambda num_bytes: None,
) -> None:
    """Write `plan` into files of at most `max_shard_gb` (in 10^9 bytes; a larger tensor gets its own file), and their
    index if there are several. `wrote` is called with the number of bytes of each block written.

    It needs host memory for a few blocks. On return all data is on disk and verified. Raises ExportFailed if a file
    cannot be written or differs from what was written.
    """
    shards: list[list[Planned]] = [[]]
    for planned in plan:
        if shards[-1] and total_bytes(shards[-1]) + planned.num_bytes > max_shard_gb * _GB:
            shards.append([])
        shards[-1].append(planned)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else [SINGLE_FILE]
    for name, shard in zip(names, shards, strict=True):
        try:
            _write_file(folder / name, shard, wrote)
        except OSError as error:
            raise ExportFailed(f"{folder / name} could not be written: {error}") from error
    if len(shards) > 1:
        weight_map = {h.name: n for n, shard in zip(names, shards, strict=True) for p in shard for h in p.headers}
        sizes = {"total_size": total_bytes(plan), "total_parameters": num_parameters}
        write_json(folder / INDEX_FILE, {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))})


def _write_file(path: pathlib.Path, shard: list[Planned], wrote: Callable[[int], Any]) -> None:
    header, positions = _layout([header for planned in shard for header in planned.headers])
    cursors = {name: start for name, (start, _) in positions.items()}
    with path.open("wb", buffering=0) as file, _Audit(path) as audit:
        audit.expect(0, header, _write_at(file.fileno(), header, 0))
        for name, block in _made(part for planned in shard for part in planned.parts()):
            view = block.reshape(-1).view(np.uint8).data
            audit.expect(cursors[name], view, _write_at(file.fileno(), view, cursors[name]))
            cursors[name] += len(view)
            wrote(len(view))
    wrong = [name for name, (_, stop) in positions.items() if cursors[name] != stop]
    if wrong:
        surplus = cursors[wrong[0]] - positions[wrong[0]][1]
        raise ValueError(f"{path}: {wrong[0]} has {surplus} bytes more than its header declares")
    found = {name: (stored.type, stored.shape, stored.offset) for name, stored in read_header(path).items()}
    if found != {h.name: (h.type, h.shape, positions[h.name][0]) for planned in shard for h in planned.headers}:
        raise ExportFailed(f"{path}: its header differs from what was written")


def _layout(headers: list[TensorHeader]) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A file's header, and the position (first byte, end) of each tensor. For alignment, tensors with large elements
    come first."""
    ordered = sorted(headers, key=lambda header: -ITEM_BYTES[header.type])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires a format
    offset = 0
    for header in ordered:
        offsets = [offset, offset := offset + header.num_bytes]
        entries[header.name] = {"dtype": header.type, "shape": list(header.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    positions = {h.name: tuple(start + at for at in entries[h.name]["data_offsets"]) for h in ordered}
    return len(text).to_bytes(8, "little") + text, positions


def _write_at(handle: int, data: bytes | memoryview, start: int) -> int:
    """Write all of `data` at byte `start`; returns its CRC-32."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, start)
        view, start = view[written:], start + written
    return zlib.crc32(data)


def _made(parts: Iterator[Callable[[], Made]]) -> Iterator[tuple[str, np.ndarray]]:
    """The results of `parts` in order; `_THREADS` of them are computed while others are written."""
    coming: collections.deque[concurrent.futures.Future[Made]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "export") as pool:
        try:
            for part in parts:
                coming.append(pool.submit(part))
                if len(coming) > _THREADS:
                    yield from coming.popleft().result()
            while coming:
                yield from coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


class _Audit:
    """Verifies a file in the background: flushes what was written to disk and reads it back."""

    def __init__(self, path: pathlib.Path):
        self._path, self._waiting, self._bytes = path, [], 0

    def __enter__(self) -> "_Audit":
        self._handle = os.open(self._path, os.O_RDONLY)
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "audit")
        self._audits: list[concurrent.futures.Future] = []
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._audit_waiting()
            for audit in self._audits:
                if kind is None:
                    audit.result()
                else:
                    audit.cancel()
        finally:
            self._pool.shutdown()
            os.close(self._handle)

    def expect(self, start: int, data: bytes | memoryview, checksum: int) -> None:
        """Record that `data`, with this CRC-32, was written at byte `start`."""
        self._waiting.append((start, len(data), checksum))
        self._bytes += len(data)
        if self._bytes >= _AUDIT_BYTES:
            if self._audits:
                self._audits.pop().result()  # do not write faster than the disk
            self._audit_waiting()

    def _audit_waiting(self) -> None:
        self._audits.append(self._pool.submit(self._compare, self._waiting))
        self._waiting, self._bytes = [], 0

    def _compare(self, written: list[tuple[int, int, int]]) -> None:
        os.fdatasync(self._handle)
        buffer = bytearray(_READ_BYTES)
        for start, length, checksum in written:
            os.posix_fadvise(self._handle, start, length, os.POSIX_FADV_DONTNEED)  # read from disk, not from the cache
            if _checksum_of(self._handle, start, length, buffer) != checksum:
                raise ExportFailed(f"{self._path}: bytes {start} to {start + length} differ from what was written")


def _checksum_of(handle: int, start: int, length: int, buffer: bytearray) -> int:
    found, stop = 0, start + length
    while start < stop:
        view = memoryview(buffer)[: min(len(buffer), stop - start)]
        count = os.preadv(handle, [view], start)
        if not count:
            return -1
        found, start = zlib.crc32(view[:count], found), start + count
    return found

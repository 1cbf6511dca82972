"""Import a model from any source into one of our checkpoints as a stream, with a few blocks in memory at a time.

Several threads read blocks, transpose them to row-major order, add them to their array's checksum and write them. A
journal records each finished block, so that an interrupted import resumes. A folder with the final name is complete.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorstore

from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint.array_writer import ArrayLayout, ArrayWriter
from maverick_jax.checkpoint.checksum import RunningChecksum, added, host
from maverick_jax.checkpoint.readers import Reader, StoredArray, order_of, require_undamaged
from maverick_jax.errors import InputError
from maverick_jax.files import no_links, require_new, sync
from maverick_jax.progress import ByteProgress

log = logging.getLogger(__name__)

_THREADS = 3
_WRITING = 8
"""Most blocks being written at a time; the database commits several together."""
_FLUSH_BYTES = 256 * 2**20
_BOOT = pathlib.Path("/proc/sys/kernel/random/boot_id")
_JOURNAL, _RUN, _SCRATCH = "journal.jsonl", "run", "records"


@dataclasses.dataclass(frozen=True)
class ImportedArray:
    """One array to import into a checkpoint."""

    reader: Reader
    dtype: np.dtype
    """Dtype in which it is stored."""
    layout: ArrayLayout

    @classmethod
    def of(cls, reader: Reader, dtype: np.dtype, split: tuple[int, ...]) -> "ImportedArray":
        """`split`: the axes that meshes shard."""
        return cls(reader, dtype, ArrayLayout.of(reader.shape, dtype.itemsize, order_of(reader), split))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.layout.shape) * self.dtype.itemsize


def import_arrays(
    arrays: Mapping[str, ImportedArray],
    meta: dict[str, Any],
    out: pathlib.Path,
    *,
    identity: str,
    checkpoint: str,
    add_files: Callable[[pathlib.Path], None],
) -> None:
    """Write the folder `out` with a checkpoint of `arrays` at `checkpoint`/0.

    `identity`: text that identifies the source; an interrupted import is resumed only for the same source and the same
    arrays. `add_files` adds the remaining files to the folder it is given. Raises InputError if `out` exists, if
    another process is writing it, if the disk is too full, or if the source is damaged or changes during the import.
    """
    require_new(out)
    with _Partial.opened(out, _key(identity, arrays, meta)) as partial:
        path = partial.folder / _RUN / checkpoint / "0"
        writer = ArrayWriter(path)
        _require_room(partial, arrays)
        _stream(arrays, writer, partial)
        checksums = {name: added(partial.sums.get(name, {}).values()) for name in arrays}
        stored = {name: jax.ShapeDtypeStruct(a.layout.shape, a.dtype) for name, a in arrays.items()}
        sealed = contents.seal(0, stored, checksums, meta)
        writer.finish(sealed, {name: a.layout for name, a in arrays.items()}, partial.folder / _SCRATCH)
        add_files(partial.folder / _RUN)
        partial.become(out)


def _key(identity: str, arrays: Mapping[str, ImportedArray], meta: dict[str, Any]) -> str:
    """Digest that identifies an import: source, arrays, metadata, and the machine's boot, since a restart loses data
    that was not yet flushed."""
    plan = {name: (str(a.dtype), a.layout.shape, a.layout.block, a.layout.chunk) for name, a in arrays.items()}
    boot = _BOOT.read_text() if _BOOT.exists() else ""
    return hashlib.sha256(json.dumps([identity, plan, meta, boot], sort_keys=True).encode()).hexdigest()


def _require_room(partial: "_Partial", arrays: Mapping[str, ImportedArray]) -> None:
    needed = sum(a.num_bytes for a in arrays.values()) - partial.done_bytes(arrays)
    free = shutil.disk_usage(partial.folder).free
    if free < needed:
        where, needed, free = partial.folder.parent, needed / 1e9, free / 1e9
        raise InputError(f"{where}: the import needs {needed:.3f} GB more; the disk has {free:.3f} GB free")


# ---- the stream ----------------------------------------------------------------------------------------------------


def _stream(arrays: Mapping[str, ImportedArray], writer: ArrayWriter, partial: "_Partial") -> None:
    total, done = sum(a.num_bytes for a in arrays.values()), partial.done_bytes(arrays)
    writing: collections.deque[_Moved] = collections.deque()
    with ByteProgress("importing", total, done) as progress, _Flushing(writer) as flushing:

        def settle(most: int) -> None:
            while len(writing) > most or (writing and writing[0].written.done()):
                moved = writing.popleft()
                moved.written.result()
                partial.record(moved.name, moved.number, moved.checksum)
                progress.advance(moved.num_bytes)
                flushing.advance(moved.num_bytes)

        for moved in _in_threads(_jobs(arrays, writer, partial)):
            writing.append(moved)
            settle(_WRITING)
        settle(0)
    for name, array in arrays.items():
        if isinstance(array.reader, StoredArray):
            _reread(array, partial.sums_before.get(name, {}).keys())
            require_undamaged({name: array.reader})


class _Flushing:
    """Flushes files in the background; otherwise the operating system would first accumulate gigabytes."""

    def __init__(self, writer: ArrayWriter):
        self._writer, self._bytes, self._flush = writer, 0, None
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "flush")

    def advance(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        if self._bytes >= _FLUSH_BYTES and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()
            self._flush, self._bytes = self._pool.submit(self._writer.flush), 0

    def __enter__(self) -> "_Flushing":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._pool.shutdown()
        if self._flush and kind is None:
            self._flush.result()


def _reread(array: ImportedArray, finished: Collection[int]) -> None:
    """Read the blocks of earlier attempts again, so that the whole source array is verified."""
    for number, block in enumerate(array.layout.blocks()):
        if number in finished:
            array.reader(block, array.dtype)


@dataclasses.dataclass(frozen=True)
class _Moved:
    """A block that was read and is being written."""

    name: str
    number: int
    checksum: str
    num_bytes: int
    written: tensorstore.WriteFutures


def _jobs(
    arrays: Mapping[str, ImportedArray], writer: ArrayWriter, partial: "_Partial"
) -> Iterator[Callable[[], _Moved]]:
    # Open all arrays concurrently: each open is a small, slow write.
    opening = {name: writer.open(name, a.layout, a.dtype) for name, a in arrays.items()}
    for name, array in arrays.items():
        finished, opened = partial.sums_before.get(name, {}), opening.pop(name).result()
        for number, block in enumerate(array.layout.blocks()):
            if number not in finished:
                yield functools.partial(_move, opened, array, name, number, block)


def _move(opened, array: ImportedArray, name: str, number: int, block: tuple[slice, ...]) -> _Moved:
    part = array.reader(block, array.dtype)
    # Make it row-major, without a copy if it already is; JAX transposes several times as fast as NumPy.
    values = np.asarray(jax.device_put(part, host()))
    checksum = RunningChecksum()
    checksum.add(tuple(s.start for s in block), values)
    written = opened[block].write(values, can_reference_source_data_indefinitely=True)
    return _Moved(name, number, checksum.hexadecimal(), values.nbytes, written)


def _in_threads(jobs: Iterator[Callable[[], _Moved]]) -> Iterator[_Moved]:
    """Yield the results of `jobs` as they finish; at most `_THREADS` jobs run or wait to be yielded at a time."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "import") as pool:
        running = {pool.submit(job) for job in itertools.islice(jobs, _THREADS)}
        try:
            while running:
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    running |= {pool.submit(job) for job in itertools.islice(jobs, 1)}
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---- resuming interrupted imports ------------------------------------------------------------------------------------


class _Partial:
    """The folder next to the target that an import writes to, and its journal: one JSON line per finished block."""

    def __init__(self, folder: pathlib.Path, journal, sums: dict[str, dict[int, str]]):
        self.folder, self._journal, self.sums = folder, journal, sums
        """`sums`: array name -> block number -> checksum, of the finished blocks."""
        self.sums_before = {name: dict(finished) for name, finished in sums.items()}
        """The same for the blocks of earlier attempts."""

    @classmethod
    @contextlib.contextmanager
    def opened(cls, out: pathlib.Path, key: str) -> Iterator["_Partial"]:
        """Open the folder for `out`; its name is fixed. Raises InputError if another process has it open."""
        folder = out.absolute().parent / f".{out.name}.importing"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / _JOURNAL, "a+", encoding="utf-8", opener=no_links) as journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{out}: another process is importing to it") from None
            try:
                yield cls(folder, journal, _continue(folder, journal, key))
            finally:
                if folder.exists() and not (folder / _RUN).exists():  # failed before anything was written
                    shutil.rmtree(folder)

    def record(self, name: str, block: int, checksum: str) -> None:
        print(json.dumps([name, block, checksum]), file=self._journal, flush=True)
        self.sums.setdefault(name, {})[block] = checksum

    def done_bytes(self, arrays: Mapping[str, ImportedArray]) -> int:
        done = 0
        for name, finished in self.sums.items():
            sizes = [math.prod(s.stop - s.start for s in block) for block in arrays[name].layout.blocks()]
            done += sum(sizes[i] for i in finished) * arrays[name].dtype.itemsize
        return done

    def become(self, out: pathlib.Path) -> None:
        run = self.folder / _RUN
        for path in sorted(run.rglob("*"), reverse=True):
            sync(path)
        sync(run)
        if out.is_dir():
            out.rmdir()  # an empty folder may exist under this name
        run.rename(out)
        sync(out.absolute().parent)
        shutil.rmtree(self.folder)


def _continue(folder: pathlib.Path, journal, key: str) -> dict[str, dict[int, str]]:
    """Checksums of the finished blocks in the journal. If the journal belongs to another import, it is restarted and
    the folder is emptied."""
    journal.seek(0)
    lines = journal.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # the last line may be incomplete
    if whole and whole[0].strip() == key:
        journal.truncate(len("".join(whole).encode()))
        sums: dict[str, dict[int, str]] = {}
        for name, block, checksum in map(json.loads, whole[1:]):
            sums.setdefault(name, {})[block] = checksum
        log.info("resuming interrupted import: %d blocks already written", len(whole) - 1)
        return sums
    if lines:
        log.warning("%s: left by another import, or from before this machine restarted; starting over", folder)
    shutil.rmtree(folder / _RUN, ignore_errors=True)
    journal.truncate(0)
    print(key, file=journal, flush=True)
    return {}

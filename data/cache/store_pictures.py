"""Reads the samples of a source with pictures once: each picture is decoded to its end, and kept as it was encoded."""

import collections
import concurrent.futures
import contextlib
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from data.array_folder import ArrayFolder, array_file, build_once, seal
from data.cache.progress import TokenizationProgress
from data.config import DataConfig
from data.pictures.containers import as_json
from data.pictures.reading import SampleTally
from data.pictures.sample import Sample, SampleProblem, Where, as_problems
from data.sources.pictures import PictureSource
from maverick_jax.errors import InputError
from maverick_jax.images import decoder_version, open_image

LAYOUT = 1
"""Version of the stored arrays. It changes whenever the same files give other arrays."""
PROBLEMS_KEPT = 20
"""Most problems that are listed; all are counted."""
AHEAD, AHEAD_BYTES = 64, 1 << 28
"""Most samples, and about the most bytes of pictures, that wait for their decoding."""
THREADS = max(1, min(4, os.cpu_count() or 1))
"""Pictures that are decoded at a time; the largest takes a gigabyte."""
DTYPES = {
    "blob": np.dtype("u1"),
    "offsets": np.dtype("<i8"),
    "height": np.dtype("<i4"),
    "width": np.dtype("<i4"),
    "digests": np.dtype("u1"),
    "bodies": np.dtype("u1"),
    "body_offsets": np.dtype("<i8"),
    "shown": np.dtype("<i8"),
    "shown_offsets": np.dtype("<i8"),
}

_log = logging.getLogger(__name__)


class Size(NamedTuple):
    """Pixels of a picture that has been turned upright."""

    height: int
    width: int


def store_pictures(name: str, config: DataConfig) -> ArrayFolder:
    """The samples of source `name`, and their pictures. Picture p is `blob[offsets[p]:offsets[p + 1]]`, as it was
    encoded; equal files are one picture. Its upright size is `height[p]`, `width[p]`, its SHA-256 `digests[32
    p:][:32]`. The body of sample s (`data.pictures.sample`) is JSON, `bodies[body_offsets[s]:body_offsets[s + 1]]`; its
    pictures are `shown[shown_offsets[s]:shown_offsets[s + 1]]`. Metadata: the counts of the reading under `samples`.

    An interrupted build starts over. Raises InputError for samples that cannot be used, unless these are skipped."""
    source = config.sources[name]
    assert isinstance(source, PictureSource)
    files = source.identity(name)
    identity = ["pictures", LAYOUT, decoder_version(), source.malformed, files]
    path = config.cached("pictures", identity)

    def build(folder: pathlib.Path) -> None:
        _log.info("reading the pictures of source %s into %s", name, path)
        tally = SampleTally(source.malformed)
        with _StoreWriter(folder) as writer, TokenizationProgress(name) as progress:
            for where, sample, found in _decoded(source.samples(name, tally), tally):
                try:
                    writer.add(sample, found)
                except SampleProblem as problem:
                    tally.refuse(where, problem)
                    continue
                tally.samples += 1
                progress.part(where.file)
                progress.update(writer.pictures, tally.samples)
            tally.pictures = writer.pictures
        if not tally.samples:
            first = f"; the first: {tally.problems[0]}" if tally.problems else ""
            raise InputError(f"data.sources.{name}: no sample can be used of {tally.records:,} records{first}")
        if source.identity(name) != files:
            raise InputError(f"data.sources.{name}: a file changed while it was read; start again")
        found = tally.as_dict()
        seal(folder, DTYPES, {"samples": found | {"problems": found["problems"][:PROBLEMS_KEPT]}})

    return build_once(path, build)


class DecodedPicture(NamedTuple):
    """A picture of a sample that has been decoded."""

    digest: bytes
    data: bytes
    size: Size


def _decoded(
    samples: Iterator[tuple[Where, Sample]], tally: SampleTally
) -> Iterator[tuple[Where, Sample, list[DecodedPicture]]]:
    """The samples whose pictures can all be decoded, in order; the others are refused. Threads decode ahead."""
    waiting: collections.deque[tuple[Where, Sample, list[tuple[bytes, bytes]]]] = collections.deque()
    sizes: dict[bytes, concurrent.futures.Future[Size]] = {}
    held = 0

    def first() -> Iterator[tuple[Where, Sample, list[DecodedPicture]]]:
        nonlocal held
        where, sample, read = waiting.popleft()
        held -= sum(len(data) for _, data in read)
        try:
            with as_problems("picture"):
                found = [DecodedPicture(digest, data, sizes[digest].result()) for digest, data in read]
        except SampleProblem as problem:
            tally.refuse(where, problem)
            return
        yield where, sample, found

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            for where, sample in samples:
                try:
                    read = [(hashlib.sha256(data := p.read()).digest(), data, p.name) for p in sample.pictures]
                except SampleProblem as problem:
                    tally.refuse(where, problem)
                    continue
                for digest, data, shown in read:
                    if digest not in sizes:
                        sizes[digest] = pool.submit(_size, data, shown)
                waiting.append((where, sample, [(digest, data) for digest, data, _ in read]))
                held += sum(len(data) for _, data, _ in read)
                while len(waiting) > AHEAD or (held > AHEAD_BYTES and waiting):
                    yield from first()
            while waiting:
                yield from first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _size(data: bytes, name: str) -> Size:
    """Decodes a picture to its end. Raises InputError for one that cannot be."""
    with open_image(data, name=name) as image:
        return Size(image.height, image.width)


class _StoreWriter:
    """Writes the array files from their beginning."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._numbers: dict[bytes, int] = {}
        self._ends: dict[str, int] = dict.fromkeys(("offsets", "body_offsets", "shown_offsets"), 0)

    @property
    def pictures(self) -> int:
        """Number of different pictures."""
        return len(self._numbers)

    def __enter__(self) -> "_StoreWriter":
        self._open = contextlib.ExitStack()
        opened = lambda name: self._open.enter_context(array_file(self._folder, name).open("wb"))
        self._files: dict[str, BinaryIO] = {name: opened(name) for name in DTYPES}
        for name in self._ends:
            self._write(name, [0])
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def add(self, sample: Sample, found: list[DecodedPicture]) -> None:
        """Raises SampleProblem, before anything is written, for a body that JSON cannot hold."""
        body = as_json(sample.body)
        for digest, data, size in found:
            if digest not in self._numbers:
                self._numbers[digest] = len(self._numbers)
                self._append("blob", "offsets", data)
                self._write("height", [size.height])
                self._write("width", [size.width])
                self._write("digests", np.frombuffer(digest, np.uint8))
        self._append("bodies", "body_offsets", body)
        shown = np.array([self._numbers[digest] for digest, _, _ in found], np.int64)
        self._write("shown", shown)
        self._ends["shown_offsets"] += shown.size
        self._write("shown_offsets", [self._ends["shown_offsets"]])

    def _append(self, name: str, offsets: str, data: bytes) -> None:
        self._files[name].write(data)
        self._ends[offsets] += len(data)
        self._write(offsets, [self._ends[offsets]])

    def _write(self, name: str, values) -> None:
        self._files[name].write(np.asarray(values, DTYPES[name]).data)

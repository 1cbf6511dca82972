"""Write a teacher's targets in parts, each of which appears when it is complete, from one job or several."""

import contextlib
import dataclasses
import fcntl
import hashlib
import math
import os
import pathlib
import uuid
from collections.abc import Iterator

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.rows.fields import Row
from data.targets.format import (
    CONTENTS,
    HEADER,
    Contents,
    Header,
    TargetPart,
    Targets,
    content_hash,
    encode,
    part_file,
    part_json,
    read_json,
)
from maverick_jax.errors import InputError
from maverick_jax.files import open_lock, write_atomically

WRITE_OPTIONS = "group_size:1,uncompressed"  # rows are read one at a time, and the values hardly compress
FINITE = ("log_probs", "log_normaliser", "label_log_prob", "entropy")
PART_BYTES = 1 << 26


def rows_per_part(record_bytes: int, batch_size: int) -> int:
    """Rows of a part: whole batches of about `PART_BYTES`. An interrupted job repeats at most one part."""
    return batch_size * max(1, PART_BYTES // (record_bytes * batch_size))


@dataclasses.dataclass(frozen=True)
class TargetsWriter:
    """`for part in writer.missing(): with writer.part(part) as add: add(index, row, arrays, sums) ...;
    writer.finish()`."""

    path: pathlib.Path
    header: Header

    @classmethod
    def open(cls, path: pathlib.Path, header: Header) -> "TargetsWriter":
        """Create the folder or continue it. Raises InputError if it holds targets with another header."""
        path.mkdir(parents=True, exist_ok=True)
        if not (path / HEADER).exists():
            _create(path / HEADER, header.model_dump_json(indent=1).encode() + b"\n")
        existing = read_json(path / HEADER, Header)
        old, new = existing.model_dump(), header.model_dump()
        if changed := [f"  {key}: {old[key]} there, {new[key]} here" for key in old if old[key] != new[key]]:
            raise InputError("\n".join([f"{path} holds targets with other settings; nothing was changed:", *changed,
                                        "choose another folder (--out, or objective.targets.path)"]))  # fmt: skip
        return cls(path, header)

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Incomplete parts of job i of n (`shard` = (i, n)), which has the parts i, i + n, ..."""
        first, step = shard
        parts = range(first, self.header.num_parts, step)
        return [part for part in parts if not part_json(self.path, part).is_file()]

    @contextlib.contextmanager
    def part(self, number: int) -> Iterator["PartWriter"]:
        """A writer that takes the part's rows in order. The part is complete at the end of the block, and deleted if
        the block raises. Raises InputError if another process is writing the part."""
        with _alone(part_file(self.path, number).with_suffix(".lock")):
            writer = PartWriter(self, number)
            try:
                yield writer
            except BaseException:
                writer.discard()
                raise
            writer.complete()

    def finish(self) -> Targets | None:
        """Complete the folder and open it; returns None while other jobs still have incomplete parts."""
        if not (self.path / CONTENTS).exists():
            if self.missing():
                return None
            parts = [read_json(part_json(self.path, n), TargetPart) for n in range(self.header.num_parts)]
            content = Contents(header=self.header, parts=parts).model_dump_json().encode() + b"\n"
            with _alone(self.path / "contents.lock", wait=True):
                write_atomically(self.path / CONTENTS, content)
        return Targets.open(self.path)


class PartWriter:
    """Writes the rows of one part."""

    def __init__(self, targets: TargetsWriter, number: int):
        self._folder, self._header, self._number = targets.path, targets.header, number
        self.rows = targets.header.part_rows(number)
        self._next, self._digest, self._sums = self.rows.start, hashlib.sha256(), {}
        self._file = part_file(self._folder, number)
        self._unfinished = self._file.with_name(self._file.name + ".partial")
        self._unfinished.unlink(missing_ok=True)
        self._writer = ArrayRecordWriter(str(self._unfinished), WRITE_OPTIONS)

    def add(self, index: int, row: Row, arrays: Row, sums: dict[str, float]) -> None:
        """Write row `index` of the stream: its fields, the teacher's arrays, and its terms of the part's sums. Raises
        InputError if the arrays are not finite, ValueError if it is not the next row."""
        if index != self._next or index not in self.rows:
            raise ValueError(f"row {index} after row {self._next - 1} in part {self._number} of rows {self.rows}")
        if not all(np.isfinite(arrays[name]).all() for name in FINITE):
            raise InputError(f"row {index:,} of the data: the teacher's probabilities are not finite")
        record = encode(self._header, index, content_hash(row), arrays)
        self._writer.write(record)
        self._digest.update(record)
        self._next += 1
        for name, value in sums.items():
            self._sums.setdefault(name, []).append(value)

    def complete(self) -> None:
        if self._next != self.rows.stop:
            self.discard()
            raise ValueError(f"part {self._number} ends after row {self._next - 1}; expected rows {self.rows}")
        self._writer.close()
        with self._unfinished.open("rb") as file:
            os.fsync(file.fileno())
        self._unfinished.replace(self._file)
        size, sums = self._file.stat().st_size, {name: math.fsum(values) for name, values in self._sums.items()}
        done = TargetPart(bytes=size, sha256=self._digest.hexdigest(), sums=sums)
        write_atomically(part_json(self._folder, self._number), done.model_dump_json().encode() + b"\n")

    def discard(self) -> None:
        self._writer.close()
        self._unfinished.unlink(missing_ok=True)


def _create(path: pathlib.Path, content: bytes) -> None:
    """Write a file atomically, unless it exists: the first of several processes wins."""
    fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    write_atomically(fresh, content)
    with contextlib.suppress(FileExistsError):
        os.link(fresh, path)
    fresh.unlink()


@contextlib.contextmanager
def _alone(path: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; the system releases it when its holder dies."""
    with open_lock(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"{path.with_suffix('.array_record')}: another process is writing it; jobs that share a folder need "
                "different shards (--shard 0/2, --shard 1/2)"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

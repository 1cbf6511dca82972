"""Stored teacher outputs ("targets") for every position of a run's training rows: top-k tokens, their exact
log-probabilities, and the mass of all other tokens.

A folder holds `header.json` (what determines the targets), `part-NNNNN.array_record` (one record per row of the
training stream), `part-NNNNN.json` (written when its part is complete) and `contents.json` (written last). A record is
`ROW_HEAD` (row number, content hash of the row that the teacher read), the arrays of `Header.layout` in order,
little-endian, and a CRC-32 of all these bytes. `writer.py` writes the folder; this file reads it.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import struct
import threading
import zlib
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic
from array_record.python.array_record_module import ArrayRecordReader
from pydantic import Field

from data.rows.fields import TARGET, TARGETS, Row
from maverick_jax import files
from maverick_jax.errors import InputError
from maverick_jax.settings.section import Section

VERSION = 1
HEADER, CONTENTS = "header.json", "contents.json"
MAX_JSON = 1 << 26
"""Largest JSON file that is read, in bytes."""
HASHED = ("tokens", "positions", "segment_ids", "labels")
"""Fields of a row on which the teacher's outputs depend."""
ROW_HEAD, CHECKSUM = struct.Struct("<Q32s"), struct.Struct("<I")
OPEN_PARTS = 4
"""Most parts that a reader keeps open. Rows are read nearly in order."""
READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
J = TypeVar("J", bound=Section)


def layout(
    vocab_size: int, top_k: int, tail_samples: int, dtype: str, sequence_length: int
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of each array of a row, in the record's order; the arguments are entries of `Header`.

    `log_probs` [T, k] and `sample_log_probs` [T, s] belong to `ids` and `sample_ids`; `log_tail` [T]: log of the mass
    outside the top k (-inf where k is V); `log_normaliser` [T]: logsumexp of the logits / temperature: all these at
    `temperature`. `label_log_prob` and `entropy` [T] (nats) are at temperature 1, as losses are.
    """
    sizes, arrays = {"k": top_k, "s": tail_samples}, {}
    for field in TARGETS:
        shape = (sequence_length, *(sizes[axis] for axis in field.trailing))
        # log-probabilities as `dtype` says, ids as the vocabulary needs
        small = vocab_size <= 2**16 if field.dtype.kind == "u" else dtype == "float16"
        if 0 not in shape:
            arrays[field.name.removeprefix(TARGET)] = field.dtypes[0 if small else -1].newbyteorder("<"), shape
    return arrays


class Header(Section):
    """Everything that determines the targets. A folder holds the targets of one header."""

    version: Literal[1] = VERSION
    vocab_size: Annotated[int, Field(ge=1, le=2**31)]
    """V, the vocabulary size of teacher and student."""
    top_k: Annotated[int, Field(ge=1, le=2**31)]
    """k, the number of most likely tokens per position, in descending order of probability."""
    tail_samples: Annotated[int, Field(ge=0, le=2**16)]
    """s, the number of tokens per position sampled from outside the top k, with replacement."""
    dtype: Literal["float16", "float32"]
    """dtype of the log-probabilities of tokens."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Divisor of the teacher's logits."""
    seed: Count
    """Seed of the samples."""
    teacher: Digest
    """Fingerprint of the teacher; equal only for equal parameters."""
    data: Digest
    """Fingerprint of the data set."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    sequence_length: Annotated[int, Field(ge=1, le=2**31)]
    """T, the number of positions per row."""
    rows: Positive
    """Number of rows of the training stream, counted from its first."""
    rows_per_part: Positive
    """Rows in each part; the last part may have fewer."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.top_k > self.vocab_size:
            raise ValueError(f"top_k {self.top_k} is more than the vocabulary ({self.vocab_size})")
        return self

    @property
    def layout(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """dtype and shape of each array of a row, in the record's order; see `layout`."""
        return layout(self.vocab_size, self.top_k, self.tail_samples, self.dtype, self.sequence_length)

    @property
    def record_bytes(self) -> int:
        arrays = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.layout.values())
        return ROW_HEAD.size + arrays + CHECKSUM.size

    @property
    def bytes_per_token(self) -> float:
        return self.record_bytes / self.sequence_length

    @property
    def num_parts(self) -> int:
        return -(-self.rows // self.rows_per_part)

    def part_rows(self, part: int) -> range:
        return range(part * self.rows_per_part, min((part + 1) * self.rows_per_part, self.rows))


class TargetPart(Section):
    """A complete part."""

    bytes: Positive
    """Size of its file."""
    sha256: Digest
    """SHA-256 of its records, in order."""
    sums: dict[str, float] = {}
    """Sums over its positions, for the summary."""


class Contents(Section):
    """A complete folder."""

    header: Header
    parts: list[TargetPart]


def content_hash(row: Row) -> bytes:
    """SHA-256 of the fields `HASHED` of a row, as little-endian int32."""
    whole = hashlib.sha256()
    for name in HASHED:
        whole.update(np.ascontiguousarray(row[name], "<i4").data)
    return whole.digest()


def part_file(folder: pathlib.Path, part: int) -> pathlib.Path:
    return folder / f"part-{part:05d}.array_record"


def part_json(folder: pathlib.Path, part: int) -> pathlib.Path:
    return folder / f"part-{part:05d}.json"


def encode(header: Header, index: int, content: bytes, arrays: Row) -> bytes:
    """The record of row `index`, with the `arrays` of `header.layout`. Raises ValueError for other shapes."""
    pieces = [ROW_HEAD.pack(index, content)]
    for name, (dtype, shape) in header.layout.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}; expected {shape}")
        pieces.append(np.ascontiguousarray(arrays[name], dtype).tobytes())
    body = b"".join(pieces)
    return body + CHECKSUM.pack(zlib.crc32(body))


def decode(header: Header, record: bytes) -> tuple[int, bytes, Row]:
    """(row number, content hash, read-only arrays) of a record. Raises ValueError if it is damaged."""
    if len(record) != header.record_bytes:
        raise ValueError(f"{len(record)} bytes; expected {header.record_bytes}")
    body = memoryview(record)[: -CHECKSUM.size]
    if CHECKSUM.unpack(record[-CHECKSUM.size :])[0] != zlib.crc32(body):
        raise ValueError("fails its checksum")
    index, content = ROW_HEAD.unpack_from(body)
    arrays, at = {}, ROW_HEAD.size
    for name, (dtype, shape) in header.layout.items():
        arrays[name] = np.frombuffer(body, dtype, math.prod(shape), at).reshape(shape)
        at += arrays[name].nbytes
    for name in ("ids", "sample_ids"):
        if name in arrays and int(arrays[name].max()) >= header.vocab_size:
            raise ValueError(f"{name} has a token outside the vocabulary")
    return index, content, arrays


def read_json(path: pathlib.Path, section: type[J]) -> J:
    """Read a JSON file of the folder. Raises FileNotFoundError if it is missing, InputError if it is malformed."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON:,} bytes")
        text = path.read_text("utf-8")
        found = json.loads(text, object_pairs_hook=files.once, parse_constant=files.no_constant)
        return section.model_validate(found)
    except FileNotFoundError:
        raise
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: {error}") from None


class Targets:
    """Reads the targets of a folder row by row, from any thread. It is pickled as its path."""

    def __init__(self, path: pathlib.Path, contents: Contents):
        self.path, self.header = path, contents.header
        self.parts = contents.parts
        self._readers: dict[int, ArrayRecordReader] = {}
        """Open parts, the one used last at the end."""
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: pathlib.Path) -> "Targets":
        """Open a folder. Raises InputError if it is missing, incomplete or damaged. File sizes are checked here, and
        each row when it is read."""
        try:
            contents = read_json(path / CONTENTS, Contents)
        except FileNotFoundError:
            raise InputError(_unfinished(path)) from None
        if len(contents.parts) != contents.header.num_parts:
            raise InputError(f"{path / CONTENTS}: {len(contents.parts)} parts; its header declares "
                             f"{contents.header.num_parts}")  # fmt: skip
        for number, part in enumerate(contents.parts):
            file = part_file(path, number)
            size = file.stat().st_size if file.is_file() else None
            if size != part.bytes:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise InputError(
                    f"{file}: {found}; expected {part.bytes:,} bytes. To write it again, delete "
                    f"{part_json(path, number).name} and {CONTENTS}, then run {how_to_go_on(path)}"
                )
        return cls(path, contents)

    @property
    def digest(self) -> str:
        """SHA-256 of header and records; equal for equal targets, independent of path and time."""
        whole = [self.header.model_dump(mode="json"), [part.sha256 for part in self.parts]]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def sums(self) -> dict[str, float]:
        """Sums over all positions."""
        names = sorted({name for part in self.parts for name in part.sums})
        return {name: math.fsum(part.sums.get(name, 0.0) for part in self.parts) for name in names}

    def row(self, index: int, row: Row) -> Row:
        """The arrays of `Header.layout` for row `index` of the stream, whose fields are `row`. Raises InputError for an
        index out of range, a damaged record, or a row whose contents differ from those that the teacher read."""
        if not 0 <= index < self.header.rows:
            raise InputError(f"{self.path}: holds rows 0 to {self.header.rows - 1:,}, but row {index:,} is needed")
        part, at = divmod(index, self.header.rows_per_part)
        file = part_file(self.path, part)
        try:
            with self._lock:  # another thread must not close the reader meanwhile
                record = self._reader(part).read([at])[0]
            number, content, arrays = decode(self.header, record)
            if number != index:
                raise ValueError(f"belongs to row {number:,}")
        # array_record raises RuntimeError and IndexError for damaged files
        except (ValueError, IndexError, RuntimeError, OSError) as error:
            raise InputError(f"{file}: the record of row {index:,}: {str(error).splitlines()[0]}") from None
        if content != content_hash(row):
            raise InputError(f"{self.path}: made from other data: its row {index:,} has other tokens than this run's "
                             "(sources, order, packing, seed and tokenizer must be the same)")  # fmt: skip
        return arrays

    def _reader(self, part: int) -> ArrayRecordReader:
        reader = self._readers.pop(part, None)
        if reader is None:
            while len(self._readers) >= OPEN_PARTS:
                with contextlib.suppress(RuntimeError):  # of a damaged file, whose row has been refused
                    self._readers.pop(next(iter(self._readers))).close()
            reader = ArrayRecordReader(str(part_file(self.path, part)), READ_OPTIONS)
            if not reader.ok():
                raise ValueError("the file cannot be opened")
        self._readers[part] = reader
        return reader

    def __reduce__(self) -> tuple[Any, ...]:
        return Targets.open, (self.path,)


def how_to_go_on(path: pathlib.Path | str) -> str:
    """The command that makes or completes the targets in `path`."""
    return f"`maverick data targets CONFIG --out {path}`"


def _unfinished(path: pathlib.Path) -> str:
    """The error message for a folder without complete targets."""
    try:
        header = read_json(path / HEADER, Header)
    except FileNotFoundError:
        return f"{path}: no teacher targets here; make them with {how_to_go_on(path)}"
    missing = [part for part in range(header.num_parts) if not part_json(path, part).is_file()]
    rows = sum(len(header.part_rows(part)) for part in missing)
    return (
        f"{path}: incomplete: {rows:,} of {header.rows:,} rows are missing ({len(missing):,} of "
        f"{header.num_parts:,} parts); continue with {how_to_go_on(path)}"
    )

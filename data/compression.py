"""Compressed files: read as streams, in bounded memory, and never as more data than a file of their size can honestly
hold."""

import bz2
import gzip
import io
import lzma
import pathlib
import zlib
from typing import BinaryIO, Protocol

from maverick_jax.errors import InputError

ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard", ".zstd": "Zstandard"}
"""Endings of compressed files, and what they are compressed with."""
_MAGIC = ((b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"))
_BZIP2_BLOCK, _BZIP2_END = b"1AY&SY", b"\x17rE8P\x90"
MAX_RATIO, FREE_BYTES = 1000, 1 << 28
"""A file may expand to this many times its size, and to this many bytes in any case."""
MAX_WHOLE = 1 << 30
"""Most bytes of a compressed file that is held in memory as a whole."""
MAX_LINE = 1 << 28
"""Longest line, in bytes."""
_LZMA_MEMORY = 1 << 28
_CHUNK = 1 << 18


class _Source(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


def compression_of(path: pathlib.Path) -> str | None:
    """What the file is compressed with, by its first bytes; None: nothing. Raises OSError if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(10)
    if head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:] in (_BZIP2_BLOCK, _BZIP2_END):
        return "bzip2"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def split_ending(path: pathlib.Path) -> tuple[str, str | None]:
    """The ending of the name in lower case without that of a compression, and the compression: `.jsonl`, `gzip`."""
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return pathlib.Path(path.stem).suffix.lower(), ENDINGS[ending]
    return ending, None


def open_data(path: pathlib.Path) -> BinaryIO:
    """Opens a file for reading, decompressed if it is compressed: its first bytes tell. Raises OSError if it cannot be
    opened, and InputError, also while it is read, if it is damaged, truncated or expands beyond all measure."""
    found = compression_of(path)
    expected = ENDINGS.get(path.suffix.lower())
    if expected is not None and found != expected and path.stat().st_size:
        raise InputError(f"{path}: not compressed with {expected}, as its ending says"
                         + (f", but with {found}" if found else ""))  # fmt: skip
    if found is None:
        return path.open("rb")
    return io.BufferedReader(_Bounded(path, found), _CHUNK)


def read_whole(path: pathlib.Path) -> bytes:
    """The contents of a file. Raises as `open_data`, and for a compressed one of more than `MAX_WHOLE` bytes."""
    with open_data(path) as file:
        if not isinstance(file, io.BufferedReader) or not isinstance(file.raw, _Bounded):
            return file.read()
        found = file.read(MAX_WHOLE + 1)
    if len(found) > MAX_WHOLE:
        raise InputError(f"{path}: more than {MAX_WHOLE:,} bytes when decompressed; decompress it, or use JSON lines")
    return found


def require_plain(path: pathlib.Path, format: str) -> None:
    """Raises InputError if the file is compressed: `format` cannot be read as a stream."""
    if (found := compression_of(path)) is not None:
        raise InputError(f"{path}: compressed with {found}; {format} is read uncompressed: decompress the file first")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return (str(error) or type(error).__name__).splitlines()[0]


class _Bounded(io.RawIOBase):
    """The decompressed bytes of a file."""

    def __init__(self, path: pathlib.Path, compression: str):
        self._path, self._compression = path, compression
        self._most, self._count = max(FREE_BYTES, MAX_RATIO * path.stat().st_size), 0
        self._file = path.open("rb")
        self._source = _opened(self._file, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer, /) -> int:
        room = memoryview(buffer)
        try:
            found = self._source.read(len(room)) or b""
        except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise InputError(
                f"{self._path}: compressed with {self._compression}: damaged or truncated: {first_line(error)}"
            ) from None
        self._count += len(found)
        if self._count > self._most:
            raise InputError(f"{self._path}: expands to more than {MAX_RATIO:,} times its size; if that is right, "
                             "decompress it first")  # fmt: skip
        room[: len(found)] = found
        return len(found)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _opened(file: BinaryIO, compression: str) -> _Source:
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=file)
        case "bzip2":
            return bz2.BZ2File(file)
        case "xz":
            return _Xz(file)
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")  # ArrowInvalid is a ValueError


class _Xz:
    """Like `lzma.LZMAFile`, with bounded memory: a header may ask for 4 GiB."""

    def __init__(self, file: BinaryIO):
        self._file, self._left, self._stream = file, b"", None

    def read(self, size: int) -> bytes:
        while True:
            if self._stream is None or self._stream.eof:
                rest = (b"" if self._stream is None else self._stream.unused_data) or self._file.read(_CHUNK)
                if not rest.strip(b"\0"):  # padding between streams
                    if not rest:
                        return b""
                    self._stream = None
                    continue
                self._stream, self._left = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY), rest.lstrip(b"\0")
            elif self._stream.needs_input and not self._left:
                self._left = self._file.read(_CHUNK)
                if not self._left:
                    raise EOFError("it ends too early")
            found, self._left = self._stream.decompress(self._left, size), b""
            if found:
                return found

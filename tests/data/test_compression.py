"""Compressed files: the same bytes as decompressed ones, and one error for any damage or bomb, in bounded memory."""

import bz2
import gzip
import lzma
import pathlib

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import compression
from data.compression import compression_of, open_data, read_whole, require_plain, split_ending
from maverick_jax.errors import InputError


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard}
TEXT = b"".join(b"line %d\n" % i for i in range(2000))


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("members", [1, 3])
def test_a_compressed_file_is_read_as_what_it_holds(ending, members, tmp_path):
    """Also one of several streams, as `cat a.gz b.gz` makes it."""
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(COMPRESS[ending](TEXT) * members)
    assert compression_of(path) == compression.ENDINGS[ending]
    assert read_whole(path) == TEXT * members
    with open_data(path) as file:
        assert file.readline() == b"line 0\n" and file.readlines()[-1] == b"line 1999\n"


def test_the_first_bytes_tell_and_not_the_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(TEXT))
    assert read_whole(tmp_path / "a.txt") == TEXT
    for head in (b"BZh9 is how this text begins", b"", b"\x1f"):
        (tmp_path / "b.txt").write_bytes(head)
        assert compression_of(tmp_path / "b.txt") is None and read_whole(tmp_path / "b.txt") == head


@pytest.mark.parametrize(("content", "said"), [(b"plain", "as its ending says$"), (bz2.compress(TEXT), "with bzip2")])
def test_an_ending_that_is_wrong_is_an_error(content, said, tmp_path):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(InputError, match=f"a.gz: not compressed with gzip, .*{said}"):
        read_whole(tmp_path / "a.gz")


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_truncated_file_is_an_error(ending, tmp_path):
    whole = COMPRESS[ending](TEXT)
    (path := tmp_path / f"a{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"compressed with \w+: damaged or truncated: "):
        read_whole(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(COMPRESS)), st.data())
def test_damage_is_never_another_kind_of_error(tmp_path, ending, data):
    raw = bytearray(COMPRESS[ending](TEXT[:3000]))
    at, value = data.draw(st.integers(10, len(raw) - 1)), data.draw(st.integers(0, 255))
    raw[at] = value
    (path := tmp_path / f"a{ending}").write_bytes(raw)
    said = f"{path}: "
    try:
        read_whole(path)
    except InputError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")


@pytest.mark.parametrize("ending", COMPRESS)
def test_a_bomb_is_an_error_before_it_is_large(ending, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(compression, "MAX_RATIO", 100)
    (path := tmp_path / f"a{ending}").write_bytes(COMPRESS[ending](bytes(1 << 24)))
    read = []
    with open_data(path) as file, pytest.raises(InputError, match="expands to more than 100 times its size"):
        read.extend(iter(lambda: len(file.read(1 << 16)), 0))
    assert sum(read) < max(1 << 20, 101 * path.stat().st_size) + compression._CHUNK


def test_an_xz_file_cannot_ask_for_much_memory(tmp_path, monkeypatch):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    raw = bytearray(lzma.compress(TEXT, filters=filters))
    assert lzma.decompress(bytes(raw)) == TEXT
    (path := tmp_path / "a.xz").write_bytes(raw)
    assert read_whole(path) == TEXT
    monkeypatch.setattr(compression, "_LZMA_MEMORY", 1 << 19)
    with pytest.raises(InputError, match=r"[Mm]emory"):
        read_whole(path)


def test_a_compressed_file_that_is_held_whole_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "MAX_WHOLE", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(TEXT))
    with pytest.raises(InputError, match="more than 1,000 bytes when decompressed"):
        read_whole(tmp_path / "a.gz")
    (tmp_path / "a.txt").write_bytes(TEXT)
    assert read_whole(tmp_path / "a.txt") == TEXT


def test_formats_that_are_no_streams_say_compressed(tmp_path):
    (tmp_path / "a.parquet").write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match=r"a.parquet: compressed with gzip; Parquet is read uncompressed"):
        require_plain(tmp_path / "a.parquet", "Parquet")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("a.jsonl", (".jsonl", None)), ("a.JSON.GZ", (".json", "gzip")), ("a.gz", ("", "gzip")),
     ("a.b.txt.zstd", (".txt", "Zstandard")), ("a", ("", None)), ("a.tar.xz", (".tar", "xz"))],
)  # fmt: skip
def test_endings(name, parts):
    assert split_ending(pathlib.Path(name)) == parts

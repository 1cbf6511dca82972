"""Ranged reads of safetensors files, compared with NumPy and the library's reader, and while files change."""

import json
import os
import pathlib

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maverick_jax.errors import InputError
from maverick_jax.huggingface import safetensors_reader
from maverick_jax.huggingface.safetensors_reader import read_header


@st.composite
def boxes(draw):
    """A shape, a part of it, and the shape in which the tensor is stored."""
    shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=4))
    index = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        index.append(slice(start, draw(st.integers(start + 1, n))))
    stored = draw(st.sampled_from([shape, [int(np.prod(shape, dtype=int))], [1, *shape]]))
    return tuple(shape), tuple(index), tuple(stored)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    boxes(), st.sampled_from(["float32", "float16"]), st.sampled_from([1, 20, 10**6]), st.sampled_from([1, 40, 10**6])
)
def test_any_part_equals_numpys(tmp_path, monkeypatch, drawn, dtype, seek, slab):
    shape, index, stored = drawn
    monkeypatch.setattr(safetensors_reader, "_WORTH_A_SEEK", seek)
    monkeypatch.setattr(safetensors_reader, "_SLAB_BYTES", slab)
    whole = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    safetensors.numpy.save_file({"before": np.ones(3, "i1"), "x": whole.reshape(stored)}, tmp_path / "f.safetensors")
    tensor = read_header(tmp_path / "f.safetensors")["x"]
    np.testing.assert_array_equal(tensor.read(index, shape), whole[index], strict=True)
    np.testing.assert_array_equal(tensor.read(), whole.reshape(stored), strict=True)
    into = np.empty_like(whole[index])
    assert tensor.read(index, shape, into) is into
    np.testing.assert_array_equal(into, whole[index])


def test_few_surplus_bytes_are_read(tmp_path, monkeypatch):
    safetensors.numpy.save_file({"x": np.zeros((64, 64, 1024), np.float32)}, tmp_path / "f.safetensors")
    tensor, asked = read_header(tmp_path / "f.safetensors")["x"], []
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda f, to, at: asked.append(sum(map(len, to))) or read(f, to, at))
    tensor.read((slice(3, 5), slice(0, 64), slice(0, 1024)))  # contiguous: one read
    assert asked == [2 * 64 * 4096]
    asked.clear()
    tensor.read((slice(0, 64), slice(1, 2), slice(0, 1024)))  # rows far apart: one read each
    assert asked == [4096] * 64
    asked.clear()
    tensor.read((slice(0, 1), slice(0, 64), slice(512, 1024)))  # rows close together: one read with the gaps
    assert asked == [64 * 4096]


# ---- against the library ---------------------------------------------------------------------------------------------


GOOD = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.ones((4,), np.float16),
    "c": np.ones((), "i8"),
}


def theirs(path: pathlib.Path) -> dict | None:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {
                name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape()))
                for name in file.keys()  # noqa: SIM118 (it is not a mapping)
            }
    except Exception:
        return None


def ours(path: pathlib.Path) -> dict | None:
    try:
        return {name: (stored.type, stored.shape) for name, stored in read_header(path).items()}
    except InputError:
        return None


def test_a_good_file_is_read_as_by_the_library(tmp_path):
    safetensors.numpy.save_file(GOOD, tmp_path / "f.safetensors", metadata={"format": "pt"})
    assert ours(tmp_path / "f.safetensors") == theirs(tmp_path / "f.safetensors") is not None
    for name, tensor in read_header(tmp_path / "f.safetensors").items():
        if name != "c":
            np.testing.assert_array_equal(tensor.read(), GOOD[name], strict=True)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_files_that_the_library_refuses_are_refused(tmp_path, data):
    """Files with a few changed bytes or numbers: our reader may refuse more, and agrees with the library otherwise."""
    path = tmp_path / "f.safetensors"
    safetensors.numpy.save_file(GOOD, path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans(), label="change an entry, not a byte"):
        header = json.loads(content[8 : 8 + length])
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        key = data.draw(st.sampled_from(sorted(entry)))
        number = st.integers(-1, 40) | st.sampled_from([2**31, 2**62, 2**70])
        entry[key] = data.draw(
            {"dtype": st.sampled_from(["F64", "F16", "U8", "X", "F4"])}.get(key, st.lists(number, max_size=3))
        )
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + length :]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, min(len(content), 8 + length) - 1))] = data.draw(st.integers(0, 255))
        content = content[: len(content) - data.draw(st.integers(0, 2))]
    path.write_bytes(content)
    found = ours(path)
    assert found is None or found == theirs(path)


# ---- files that change -----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    safetensors.numpy.save_file({"x": np.arange(4096, dtype=np.float32)}, tmp_path / "f.safetensors")
    return tmp_path / "f.safetensors"


def test_a_file_that_changed_since_its_header_was_read_is_refused(path):
    tensor = read_header(path)["x"]
    safetensors.numpy.save_file({"x": np.ones(4096, np.float32)}, path)
    with pytest.raises(InputError, match="changed while it was read"):
        tensor.read()
    path.unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        tensor.read()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_shrinks_while_it_is_read_is_an_error(path, monkeypatch, when):
    tensor, read = read_header(path)["x"], os.preadv

    def shrinking(descriptor, buffers, offset):
        count = read(descriptor, buffers, offset) if when == "after" else 0
        os.truncate(path, 1000)
        return count or read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", shrinking)
    with pytest.raises(InputError, match="ends at byte" if when == "before" else "changed while it was read"):
        tensor.read()

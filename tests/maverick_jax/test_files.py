"""Atomic writes: a file is written completely or not at all."""

import os

import pytest

from maverick_jax.files import write_atomically


def test_a_file_has_its_old_contents_or_its_new_ones(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"old")
    write_atomically(path, memoryview(b"new"))
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def no_space(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"newer")
    assert path.read_bytes() == b"new"

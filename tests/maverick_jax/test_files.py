"""Atomic writes: a file is written completely or not at all. Files whose names others may guess follow no links."""

import os

import pytest

from maverick_jax.files import open_lock, write_atomically


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


def test_a_lock_file_is_private_and_keeps_its_contents(tmp_path):
    for _ in range(2):
        with open_lock(tmp_path / "a.lock") as file:
            file.write(b"x")
    assert (tmp_path / "a.lock").read_bytes() == b"x"
    assert (tmp_path / "a.lock").stat().st_mode & 0o777 == 0o600


def test_links_at_known_names_change_nothing_elsewhere(tmp_path):
    (tmp_path / "theirs").write_bytes(b"precious")
    for name in ("a.lock", "a.json.new"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(tmp_path / "a.lock")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "theirs").read_bytes() == b"precious" and not (tmp_path / "a.json").exists()

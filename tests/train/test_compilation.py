"""The compiler's cache is used only where nobody else can write."""

import logging
import os
import pathlib

import jax
import pytest

from train import compilation
from train.compilation import VARIABLE, exposed, use_compilation_cache


@pytest.fixture
def cache_of(monkeypatch, tmp_path):
    """`cache_of(variable)`: the cache that a process uses whose environment has this directory."""
    before = jax.config.jax_compilation_cache_dir
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "cache"))

    def use(named: str | None = None) -> str | None:
        monkeypatch.delenv(VARIABLE, raising=False)
        if named is not None:
            monkeypatch.setenv(VARIABLE, named)
        jax.config.update("jax_compilation_cache_dir", named)  # JAX does so when it is imported
        use_compilation_cache()
        return jax.config.jax_compilation_cache_dir

    yield use
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def folder(path: pathlib.Path, mode: int) -> pathlib.Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def test_a_folder_of_this_user_is_used(cache_of, tmp_path):
    assert cache_of() == str(tmp_path / "cache" / "compiled")
    assert (tmp_path / "cache" / "compiled").stat().st_mode & 0o777 == 0o700
    assert cache_of(str(tmp_path / "mine" / "own")) == str(tmp_path / "mine" / "own")
    assert (tmp_path / "mine" / "own").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("where", ["cache/compiled", "cache", "cache/a/b"])
def test_a_folder_that_others_may_write_to_is_not_used(where, cache_of, tmp_path, caplog):
    """Itself, or one above it: there it could be exchanged."""
    folder(tmp_path / where, 0o777)
    caplog.set_level(logging.WARNING)
    chosen = None if where != "cache/a/b" else str(tmp_path / where / "c")
    assert cache_of(chosen) is None
    assert f"other users may write to {tmp_path / where}" in caplog.text


@pytest.mark.parametrize("name", ["named", "parent/named"])
def test_what_the_environment_names_is_checked_too(name, cache_of, tmp_path, caplog):
    folder((tmp_path / name).parent if "/" in name else tmp_path / name, 0o777)
    assert cache_of(str(tmp_path / name)) is None
    assert f"{VARIABLE}: not using the compilation cache" in caplog.text


def test_an_empty_name_turns_the_cache_off_and_a_programs_own_choice_is_kept(cache_of, tmp_path, monkeypatch):
    assert cache_of("") == ""
    monkeypatch.delenv(VARIABLE)
    chosen = str(folder(tmp_path / "shared", 0o777))
    jax.config.update("jax_compilation_cache_dir", chosen)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen


def test_where_others_could_write(tmp_path, monkeypatch):
    ours = folder(tmp_path / "ours", 0o755)
    assert exposed(ours) is None
    sticky = folder(tmp_path / "sticky", 0o1777)
    assert exposed(folder(sticky / "ours", 0o700)) is None  # as in /tmp
    assert exposed(sticky) == f"other users may write to {sticky}"
    target = folder(folder(tmp_path / "open", 0o777) / "target", 0o700)
    (tmp_path / "link").symlink_to(target)
    assert exposed(tmp_path / "link") == f"other users may write to {tmp_path / 'open'}"
    monkeypatch.setattr(compilation.os, "getuid", lambda: os.geteuid() + 1)
    if ours.stat().st_uid:
        assert exposed(ours) == f"{ours} belongs to another user"


def test_a_group_of_this_users_own_may_write(tmp_path, monkeypatch):
    shared = folder(tmp_path / "shared", 0o775)
    monkeypatch.setattr(compilation, "_is_own_group", lambda gid: True)
    assert exposed(shared) is None
    monkeypatch.setattr(compilation, "_is_own_group", lambda gid: False)
    assert exposed(shared) == f"other users may write to {shared}"

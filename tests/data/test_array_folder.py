"""Array folders: built once for all processes, verified when opened; and the progress of a build."""

import concurrent.futures
import functools
import os
import threading
import time

import numpy as np
import pytest
from rich.console import Console

from data import array_folder
from data.cache.progress import TokenizationProgress
from maverick_jax import progress
from maverick_jax.errors import InputError


def test_the_second_caller_waits_and_builds_nothing(tmp_path):
    started, builds = threading.Barrier(4), []

    def build(folder):
        builds.append(folder)
        time.sleep(0.1)
        dtype = array_folder.write_array(folder, "a", np.arange(5))
        array_folder.seal(folder, {"a": dtype}, {})

    def ask(_):
        started.wait()
        return array_folder.build_once(tmp_path / "x" / "made", build)["a"].tolist()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [[0, 1, 2, 3, 4]] * 4
    assert len(builds) == 1
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["made", "made.lock"]


def test_a_build_that_fails_leaves_no_finished_folder(tmp_path):
    def build(folder):
        array_folder.write_array(folder, "a", np.arange(5))
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError):
        array_folder.build_once(tmp_path / "made", build)
    with pytest.raises(FileNotFoundError):
        array_folder.open_folder(tmp_path / "made")


def make(folder):
    array_folder.seal(folder, {"a": array_folder.write_array(folder, "a", np.arange(5))}, {})


def modes(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mode & 0o777 for p in [folder, *folder.rglob("*")]}


def test_nobody_else_can_read_what_was_built(tmp_path, monkeypatch):
    before = os.umask(0)
    try:
        array_folder.build_once(tmp_path / "tokens" / "made", make)
    finally:
        os.umask(before)
    assert modes(tmp_path / "tokens") == {
        ".": 0o700, "made": 0o700, "made/a.bin": 0o600, "made/contents.json": 0o600, "made.lock": 0o600}  # fmt: skip


def test_a_folder_that_others_could_read_is_closed_to_them(tmp_path):
    array_folder.build_once(tmp_path / "tokens" / "made", make)
    (tmp_path / "tokens").chmod(0o755)
    (tmp_path / "tokens" / "other.partial").mkdir(mode=0o755)
    array_folder.build_once(tmp_path / "tokens" / "made", make)
    array_folder.build_once(tmp_path / "tokens" / "other", make)
    assert {modes(tmp_path / "tokens")[name] for name in (".", "made", "other")} == {0o700}


def test_a_lock_that_is_a_link_is_an_error_and_changes_nothing(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "made.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=r"cache folder .*symbolic links"):
        array_folder.build_once(tmp_path / "tokens" / "made", make)
    assert (tmp_path / "theirs").read_text() == "precious"


def test_only_equal_arrays_have_equal_digests(tmp_path):
    def digest(name, **arrays):
        folder = tmp_path / name
        folder.mkdir()
        array_folder.seal(folder, {n: array_folder.write_array(folder, n, a) for n, a in arrays.items()}, {})
        return array_folder.open_folder(folder).digest

    a, b = np.arange(3), np.arange(0)
    assert digest("one", a=a, b=b) == digest("two", b=b, a=a)
    assert (
        len({digest("3", a=a, b=b), digest("4", a=b, b=a), digest("5", a=a), digest("6", a=a.astype("u4"), b=b)}) == 4
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_stderr(monkeypatch, capsys, terminal):
    monkeypatch.setattr(progress, "Console", functools.partial(Console, force_terminal=terminal))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with TokenizationProgress("shakespeare") as told:
        told.part("[red]a.txt")
        time.sleep(0.01)
        told.update(1234, 5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "1,234 tokens, 5 documents, reading [red]a.txt" in err
    assert ("\x1b[" in err) is terminal

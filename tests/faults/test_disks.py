"""Disks that are full or read-only: one clear error, and what was saved stays."""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.conftest import STEPS, WORDS
from tests.helpers.killing import Job, compare, finish, last_update, saved_steps
from tests.helpers.small_run import cut_back, store, wait_for


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *options: str) -> Iterator[None]:
    """Something is mounted there; skips the test where that is not allowed."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("mounts: needs Linux and root")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounts: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        yield folder


def fill(folder: pathlib.Path, leave: int) -> pathlib.Path:
    """A file that leaves so many bytes of the disk free."""
    path = folder / "ballast"
    with path.open("wb") as file:
        free = os.statvfs(folder)
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return path


@pytest.mark.parametrize("leave", [0, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_ends_the_run_and_the_last_good_checkpoint_stays(
    leave, count, runs, parent, whole, small_disk, tmp_path
):
    """In update 5, after the save of update 4. With some bytes left, the next save would not fit."""
    run_dir = small_disk / "run"
    fault = {"phase": "step", "at": 5, "rank": 0, "folder": str(tmp_path)}
    job = Job(runs, parent, run_dir, count, *WORDS, inject=fault, logs=tmp_path)
    wait_for(lambda: (tmp_path / "reached-0").exists() and 4 in saved_steps(run_dir), job.processes[0])
    ballast = fill(small_disk, leave)
    (tmp_path / "go").touch()
    codes = job.finish()
    assert codes[0] == 1 and set(codes) <= {1, 76}, job.said_by_all
    said = (
        "bytes; the disk has" if leave else "No space left on device"
    )  # the room for a save is looked up before it begins
    assert "Traceback" not in job.said_by_all and said in job.said_by_all, job.said_by_all
    assert max(saved_steps(run_dir)) == 4 and store(run_dir).verify(4) == []
    ballast.unlink()
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_is_one_error(runs, parent, small_disk, tmp_path):
    fill(small_disk, 0)
    job = Job(runs, parent, small_disk / "run", 1, *WORDS, logs=tmp_path)
    assert job.finish() == [78], job.said()
    assert len(job.said().splitlines()) == 1 and "No space left on device" in job.said()


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_read_only_run_directory_is_refused_and_unchanged(count, runs, parent, whole, tmp_path):
    run_dir = cut_back(whole, tmp_path / "run", 4)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    with mounted(run_dir, "--bind", str(run_dir)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run_dir)], check=True)
        job = Job(runs, parent, run_dir, count, *WORDS)
        codes = job.finish()
        assert codes[0] == 78 and set(codes) <= {78, 76}, job.said_by_all
        assert "cannot be written" in job.said() and "Traceback" not in job.said()
        assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)


@pytest.mark.slow
def test_a_disk_that_becomes_read_only_ends_the_run(runs, parent, whole, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    fault = {"phase": "step", "at": 5, "folder": str(tmp_path)}
    with mounted(run_dir, "--bind", str(run_dir)):
        job = Job(runs, parent, run_dir, 1, *WORDS, inject=fault)
        wait_for(lambda: (tmp_path / "reached-0").exists() and 4 in saved_steps(run_dir), job.processes[0])
        subprocess.run(["mount", "-o", "remount,bind,ro", str(run_dir)], check=True)
        (tmp_path / "go").touch()
        assert job.finish() == [1], job.said()
        assert "Traceback" not in job.said() and "Read-only file system" in job.said()
    assert max(saved_steps(run_dir)) == 4 and last_update(run_dir) >= 4
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)

"""Processes that live and do not go on: stuck, frozen, dead; and bugs of one of several."""

import signal
import time

import pytest

from tests.faults.conftest import STEPS, WORDS
from tests.helpers.injected import LIMIT
from tests.helpers.killing import Job, compare, finish, last_update
from tests.helpers.small_run import wait_for

HANGS = "guard.hangs={}"


def stuck(runs, parent, run_dir, count: int, rank: int | None, phase: str, at: int) -> tuple[Job, float]:
    """A job of which a process is stuck in a phase, and the time at which it is."""
    fault = {"phase": phase, "at": at, "rank": rank, "folder": str(run_dir.parent)}
    job = Job(runs, parent, run_dir, count, *WORDS, HANGS, inject=fault)
    wait_for((run_dir.parent / f"reached-{rank or 0}").exists, job.processes[rank or 0])
    return job, time.monotonic()


@pytest.mark.parametrize(
    ("count", "rank", "phase", "at"),
    [
        pytest.param(2, 1, "step", 5, marks=pytest.mark.slow),
        *(pytest.param(1, 0, *case, marks=pytest.mark.slow) for case in (("save", 4), ("evaluation", 3))),
        *(pytest.param(2, 0, *case, marks=pytest.mark.slow) for case in (("step", 5), ("save", 4))),
        *(pytest.param(2, 1, *case, marks=pytest.mark.slow) for case in (("save", 4), ("evaluation", 3))),
    ],
)
def test_a_stuck_process_ends_the_job_with_77(count, rank, phase, at, runs, parent, whole, tmp_path, took):
    """Every process writes down where it is; that of the stuck one says who, in which phase, and where."""
    job, since = stuck(runs, parent, tmp_path / "run", count, rank, phase, at)
    assert job.finish() == [77] * count, job.said_by_all
    took(time.monotonic() - since - LIMIT, f"process {rank} of {count} stuck in {phase}, beyond its limit")
    found = [(tmp_path / "run" / f"stacks-{number}.txt").read_text() for number in range(count)]
    assert "in hold" in found[rank] and f"phase '{phase}' after update" in "".join(found)
    assert all(f"process {number}" in text for number, text in enumerate(found))
    finish(runs, parent, tmp_path / "run", *WORDS)
    compare(whole, tmp_path / "run", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_process_ends_the_others(rank, runs, parent, whole, tmp_path, took):
    """If it is process 0, JAX's own heartbeats end the others, by SIGABRT, which launchers count as 76."""
    job = Job(runs, parent, tmp_path / "run", 2, *WORDS, inject={"phase": "step", "at": 3, "seconds": 0.2})
    wait_for(lambda: last_update(tmp_path / "run") >= 3, job.processes[0])
    since = time.monotonic()
    job.processes[rank].send_signal(signal.SIGSTOP)
    code = job.processes[1 - rank].wait(900)
    took(time.monotonic() - since, f"process {rank} frozen")
    assert code == 76 if rank else code in (76, -signal.SIGABRT), job.said_by_all
    if rank:
        assert "process 1 on" in job.said(0) and "has given no sign of life for" in job.said(0)
    job.processes[rank].kill()
    assert job.processes[rank].wait(60) == -signal.SIGKILL
    finish(runs, parent, tmp_path / "run", *WORDS)
    compare(whole, tmp_path / "run", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bug_of_one_process_ends_the_job_with_1_and_its_traceback(rank, runs, parent, tmp_path, took):
    fault = {"phase": "step", "at": 4, "rank": rank, "error": True}
    job, since = Job(runs, parent, tmp_path / "run", 2, *WORDS, inject=fault), time.monotonic()
    codes = job.finish()
    took(time.monotonic() - since, f"a bug of process {rank}, from its start")
    assert codes[rank] == 1 and codes[1 - rank] == 76, job.said_by_all
    assert "ValueError: an injected bug" in job.said(rank)

"""Two jobs on one run, clocks that are set back, and who listens where."""

import signal
import sys

import pytest

from maverick_jax.checkpoint.lease import holder_of
from tests.faults.conftest import STEPS, WORDS
from tests.helpers.killing import Job, compare, saved_steps
from tests.helpers.small_run import contents, wait_for
from tests.helpers.sockets import is_loopback, listeners
from train.goodput.ledger import read_goodput


def held(runs, parent, run_dir, count: int, at: int, **fault) -> Job:
    """A job whose processes wait in an update."""
    more = {"phase": "step", "at": at, "folder": str(run_dir.parent), **fault}
    job = Job(runs, parent, run_dir, count, *WORDS, inject=more)
    for number, process in enumerate(job.processes):
        wait_for((run_dir.parent / f"reached-{number}").exists, process)
    return job


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_second_job_is_refused_and_all_listen_on_loopback_alone(count, runs, parent, whole, tmp_path):
    """The second one changes nothing; the first goes on."""
    job = held(runs, parent, tmp_path / "run", count, 5)
    found = [address for process in job.processes for address in listeners(process.pid)]
    assert all(map(is_loopback, found)) and bool(found) == (count > 1), found
    if count > 1:  # the coordinator
        assert job.port in [address.port for address in listeners(job.processes[0].pid)]
    wait_for(lambda: 4 in saved_steps(tmp_path / "run"), job.processes[0])
    changing = ("goodput.alive", "events.jsonl", "checkpoints/lease.json")  # by the first job, which lives
    fixed = lambda: {k: v for k, v in contents(tmp_path / "run").items() if not k.startswith(changing)}
    before = fixed()
    second = Job(runs, parent, tmp_path / "run", count, *WORDS, logs=tmp_path, name="second")
    assert second.finish() == [75] * count, second.said_by_all
    assert f"is in use by process {job.processes[0].pid} on " in second.said()
    assert fixed() == before
    (tmp_path / "go").touch()
    assert job.finish() == [0] * count, job.said_by_all
    compare(whole, tmp_path / "run", STEPS)
    assert holder_of(tmp_path / "run" / "checkpoints") is None


@pytest.mark.slow
def test_a_run_goes_on_under_a_clock_that_was_set_back(runs, parent, whole, tmp_path):
    """By an hour, after its process was killed. Nothing takes the lease for a live one, and every second is counted."""
    job = held(runs, parent, tmp_path / "run", 1, 5)
    wait_for(lambda: 4 in saved_steps(tmp_path / "run"), job.processes[0])
    job.processes[0].send_signal(signal.SIGKILL)
    assert job.finish() == [-signal.SIGKILL]
    again = Job(runs, parent, tmp_path / "run", 1, *WORDS, inject={"clock": -3600.0})
    assert again.finish() == [0], again.said()
    compare(whole, tmp_path / "run", STEPS)
    found = read_goodput(tmp_path / "run")
    assert sum(found.seconds.values()) == pytest.approx(found.wall, abs=0.5) and found.wall < 3000
    assert all(seconds >= 0 for seconds in found.seconds.values()) and len(found.attempts) == 2


@pytest.mark.slow
def test_a_live_job_whose_clock_is_late_keeps_its_run(runs, parent, whole, tmp_path):
    """By an hour. A second job, whose clock is right, does not take it for dead."""
    job = held(runs, parent, tmp_path / "run", 1, 5, clock=-3600.0)
    second = Job(runs, parent, tmp_path / "run", 1, *WORDS, logs=tmp_path, name="second")
    assert second.finish() == [75], second.said()
    (tmp_path / "go").touch()
    assert job.finish() == [0], job.said()
    compare(whole, tmp_path / "run", STEPS)

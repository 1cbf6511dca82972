"""A run that is asked to stop, in each of its phases: it saves one step and leaves with 75, or has nothing to save."""

import random
import signal
import time

import pytest

from tests.faults.conftest import STEPS, WORDS
from tests.helpers.killing import Job, compare, finish, saved_steps
from tests.helpers.small_run import PATIENCE, store, wait_for

TO_ALL = -1


def stopped(runs, parent, run_dir, count: int, to: int, fault: dict, *words, saved: int = 0) -> Job:
    """A job that gets SIGTERM in a phase, in which all its processes are; `to`: the one that gets it, or all. `saved`:
    a step whose save must be complete first."""
    job = Job(runs, parent, run_dir, count, *WORDS, *words, inject=fault | {"folder": str(run_dir.parent)})
    for number, process in enumerate(job.processes):
        wait_for((run_dir.parent / f"reached-{number}").exists, process)
    wait_for(lambda: not saved or saved in saved_steps(run_dir), job.processes[0])
    for process in job.processes if to == TO_ALL else [job.processes[to]]:
        process.send_signal(signal.SIGTERM)
    return job


CASES = [
    (2, 1, "step", 2),
    pytest.param(1, 0, "step", 2, marks=pytest.mark.slow),
    *(pytest.param(1, 0, phase, at, marks=pytest.mark.slow) for phase, at in (("save", 4), ("evaluation", 3))),
    *(pytest.param(2, 0, phase, at, marks=pytest.mark.slow) for phase, at in (("save", 4), ("evaluation", 3))),
    *(pytest.param(4, 2, phase, at, marks=pytest.mark.slow) for phase, at in (("step", 2), ("save", 4))),
    pytest.param(2, TO_ALL, "step", 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "to", "phase", "at"), CASES)
def test_asked_in_an_update_a_save_or_an_evaluation(count, to, phase, at, runs, parent, whole, tmp_path):
    """All save the same step, and the run goes on from it to the same end."""
    run_dir = tmp_path / "run"
    job = stopped(runs, parent, run_dir, count, to, {"phase": phase, "at": at})
    (tmp_path / "go").touch()
    assert job.finish() == [75] * count, job.said_by_all
    newest = max(saved_steps(run_dir))
    assert at <= newest < STEPS and store(run_dir).verify(newest) == []
    assert job.said_by_all.count(f"stopped as asked after step {newest}, which is saved") == count
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)


@pytest.mark.parametrize(
    ("count", "to", "phase"),
    [
        (2, 1, "compile"),
        *(pytest.param(1, 0, phase, marks=pytest.mark.slow) for phase in ("start", "restore", "compile")),
        *(pytest.param(2, 0, phase, marks=pytest.mark.slow) for phase in ("start", "restore", "compile")),
        pytest.param(4, 3, "restore", marks=pytest.mark.slow),
    ],
)
def test_asked_before_the_first_update(count, to, phase, runs, parent, whole, tmp_path):
    """Nobody waits for what it was doing, and all leave with 75, also those that got no signal."""
    run_dir = tmp_path / "run"
    job = stopped(runs, parent, run_dir, count, to, {"phase": phase})
    assert job.finish() == [75] * count, job.said_by_all
    assert "the first step was not reached, nothing is lost" in job.said(to)
    assert not saved_steps(run_dir)
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_all_are_asked_at_a_random_moment_of_the_start(seed, runs, parent, tmp_path):
    job = Job(runs, parent, tmp_path / "run", 2, *WORDS)
    time.sleep(0.2 + 4 * random.Random(seed).random())
    for process in job.processes:
        process.send_signal(signal.SIGTERM)
    assert job.finish() in ([75, 75], [0, 0]), job.said_by_all
    finish(runs, parent, tmp_path / "run", *WORDS)


# ---- not in time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["deadline", pytest.param("again", marks=pytest.mark.slow)])
def test_past_a_deadline_or_asked_again_the_last_good_checkpoint_stays(how, count, runs, parent, whole, tmp_path):
    """The update after the save of update 4 never ends."""
    run_dir = tmp_path / "run"
    words = ("guard.stop_within=1",) if how == "deadline" else ()
    job = stopped(runs, parent, run_dir, count, 0, {"phase": "step", "at": 6}, *words, saved=4)
    if how == "again":
        wait_for(lambda: "asked to stop (SIGTERM)" in job.said(), job.processes[0])
        job.processes[0].send_signal(signal.SIGTERM)
    assert job.finish(PATIENCE) == [75] * count, job.said_by_all
    assert ("(guard.stop_within), and not done" if how == "deadline" else "asked a second time") in job.said()
    assert max(saved_steps(run_dir)) == 4 and store(run_dir).verify(4) == []
    finish(runs, parent, run_dir, *WORDS)
    compare(whole, run_dir, STEPS)

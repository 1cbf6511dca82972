"""The state and the events of a run, from its files."""

import os

import pytest

from launch.runs.status import runs_in, status
from maverick_jax.checkpoint.lease import STALE, Holder
from maverick_jax.errors import InputError
from tests.train.goodput.test_ledger import begun


def ended(reason: str | None):
    found = begun("a", 0).updates(1, 4, 8)
    return found.end(reason) if reason else found.lines


@pytest.mark.parametrize(
    ("reason", "state", "why"),
    [
        ("done", "finished", "all steps done"),
        ("Preempted", "preempted", "asked to stop, after a save"),
        ("KeyboardInterrupt", "stopped", "interrupted"),
        ("Watchdog", "failed", "hung"),
        ("NonFiniteBudgetSpent", "failed", "NonFiniteBudgetSpent"),
        (None, "stopped", "killed: it left no record of its end"),
    ],
)
def test_the_state_of_a_run_without_a_job_follows_its_last_record(run, reason, state, why):
    found = status(run("a", ended(reason)))
    assert (found.state, found.reason) == (state, why)


def test_the_newest_start_counts(run):
    lines = [*ended("Preempted"), *begun("b", 90).updates(5, 6, 2).end("done")]
    assert status(run("a", lines)).state == "finished"


def test_a_living_holder_of_the_lease_means_running(run):
    found = status(run("a", ended(None), holder=Holder.here(1000.0)), now=1000.0)
    assert found.state == "running" and f"process {os.getpid()} on " in found.reason
    assert found.seconds_left == 16 * 2.0


def test_a_holder_elsewhere_is_alive_until_it_is_silent(run, elsewhere):
    directory = run("a", ended(None), holder=elsewhere)
    alive, silent = status(directory, now=1000 + STALE), status(directory, now=1001 + STALE)
    assert (alive.state, silent.state) == ("running", "stopped")
    assert silent.reason.startswith("no sign of life from process 1 on far\\x1b[2J, job 17")
    assert silent.seconds_left is None


def test_a_holder_that_has_ended_is_no_job(run):
    dead = Holder.here(1000.0).model_copy(update={"started": 1})
    assert status(run("a", ended("Preempted"), holder=dead), now=1000.0).state == "preempted"


def test_figures_are_the_newest_and_nonsense_is_none(run):
    found = status(run("a", ended("Preempted")))
    assert (found.step, found.steps, found.loss, found.held_out_loss) == (4, 20, 4.6, 3.25)
    assert found.tokens_per_second == 3000 and found.goodput == pytest.approx(8 / 25)
    odd = status(run("b", [], loss="NaN", tokens_per_second={}))
    assert (odd.loss, odd.tokens_per_second, odd.goodput) == (None, None, None)
    assert (odd.state, odd.reason, odd.events) == ("stopped", "no record of a start", ())


def test_events_have_starts_ends_evaluations_and_checkpoints(run):
    first = begun("a", 0).updates(1, 4, 8).phase("evaluation", 3)
    directory = run("a", [*first.lines, *begun("b", 90).updates(5, 6, 2).end("Preempted")], saved=(4, 6))
    for step, time in ((4, 5.0), (6, 4e9)):
        os.utime(directory / "checkpoints" / str(step), (time, time))
    found = status(directory)
    assert [event.text for event in found.events] == [
        "checkpoint of step 4",
        "started",
        "evaluation at step 4: held-out loss 3.2500",
        "ended after step 4: killed",
        "started again from step 4",
        "ended after step 6: stopped as asked",
        "checkpoint of step 6",
    ]
    assert found.checkpoints == (4, 6) and found.step == 6


def test_runs_are_found_in_a_folder_or_are_it(run, tmp_path):
    paths = [run("b"), run("a")]
    (tmp_path / "all" / "other").mkdir()
    assert runs_in(tmp_path / "all") == paths[::-1] and runs_in(paths[0]) == paths[:1]
    with pytest.raises(InputError, match="does not exist"):
        runs_in(tmp_path / "none")

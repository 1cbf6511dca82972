"""A real run that is killed, or whose checkpoints are damaged, ends in the same state as an uninterrupted run."""

import json
import pathlib
import random
import signal
import subprocess

import pytest

from launch.cli import main
from tests.helpers.small_run import STEPS, Place, assert_same_run, cut_back, lines, log_of, store, wait_for
from tests.helpers.trajectory_rows import tuning, write_runs
from tests.maverick_jax.checkpoint.test_store import empty, flip, largest, truncate
from train.goodput.ledger import read_goodput


def kill(process: subprocess.Popen, run_dir: pathlib.Path, moment: str, luck: random.Random) -> None:
    """Sends SIGKILL during a save, some steps after a save, or at any time, including the start."""
    checkpoints = run_dir / "checkpoints"
    names = lambda: {path.name for path in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    before = names()
    saving = lambda: any("tmp" in name for name in names() - before)
    saved = lambda: any(name.isdigit() for name in names() - before)
    match moment:
        case "save":
            wait_for(saving, process)
            seconds = 0.02 * luck.random()
        case "step":
            wait_for(saved, process)
            seconds = 0.1 * luck.random()  # the whole run is a second of updates
        case "any":
            seconds = 8 * luck.random()
    try:
        code = process.wait(seconds)
        pytest.fail(f"the run ended ({code}) before it could be killed:\n{log_of(run_dir)}")
    except subprocess.TimeoutExpired:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def check_survives(runs: Place, whole: pathlib.Path, run_dir: pathlib.Path, moments: list[str], *options: str) -> None:
    """One of `moments` must be a step after a save, or there may be nothing to restore."""
    luck = random.Random(0)
    for moment in moments:
        kill(runs.start(run_dir, *options), run_dir, moment, luck)
    assert f"restored checkpoint {run_dir}/checkpoints/" in runs.train(run_dir, *options)
    assert log_of(run_dir).count("left by an interrupted process") >= moments.count("save") // 2
    assert_same_run(whole, run_dir, lines(whole)[-1]["step"])
    assert all(path.name.isdigit() for path in (run_dir / "checkpoints").iterdir())
    check_wall_time(run_dir, killed=len(moments))


def check_wall_time(run_dir: pathlib.Path, killed: int) -> None:
    """Every second is in a class, and the record has each killed process that had begun to train."""
    found = read_goodput(run_dir)
    record = [json.loads(line) for line in (run_dir / "goodput.jsonl").read_text().splitlines()]
    times = [time for line in record for time in (line.get("time"), line.get("from"), line.get("to")) if time]
    assert sum(found.seconds.values()) == pytest.approx(max(times) - min(times), abs=0.5)
    assert {name for name, seconds in found.seconds.items() if seconds > 0} >= {
        *("init", "compile", "step", "save", "restore", "evaluation", "idle"),
    }
    reasons = [attempt.reason for attempt in found.attempts]
    assert reasons[-1] == "done" and 1 < len(reasons) <= killed + 1 and not any(reasons[:-1])
    assert found.attempts[-1].last_step == lines(run_dir)[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("moments", [["save", "step"], ["save", "any", "step", "save"]], ids=len)
def test_a_run_that_is_killed_repeatedly_ends_the_same(moments, whole_run, runs, tmp_path):
    check_survives(runs, whole_run, tmp_path / "run", moments, "checkpoint.every=1")


@pytest.mark.slow
def test_a_student_is_killed_four_times(whole_run, runs, tmp_path):
    """The state of its weighting is restored too."""
    objective = (
        f"objective={{kind: distill, teacher: {whole_run}, on_policy: {{share: 0.3, max_tokens: 8, prompt_tokens: 8}}}}"
    )
    options = ("run.steps=120", objective)
    runs.train(tmp_path / "whole", *options)
    check_survives(
        runs, tmp_path / "whole", tmp_path / "run", ["save", "any", "step", "save"], "checkpoint.every=2", *options
    )
    record = lines(tmp_path / "whole")
    assert {line["on_policy"] for line in record if "on_policy" in line} == {0, 1}
    remembered = [line["lead_ema"] for line in record if line.get("on_policy") == 0]
    assert remembered[-1] != remembered[-2]


@pytest.mark.slow
def test_a_run_on_trajectories_is_killed_four_times(runs, tmp_path):
    """With balanced decisions, so that weights depend on the whole train split, and adapters, so that objective heads
    are restored too."""
    options = (*tuning(write_runs(tmp_path / "runs.jsonl", 24)), "data.kind_weights={user: 0.25}", "run.steps=120",
               "data.sources.shop.trajectories.balance_decisions=4", "trainable.lora={rank: 2}")  # fmt: skip
    runs.train(tmp_path / "whole", *options)
    check_survives(
        runs, tmp_path / "whole", tmp_path / "run", ["save", "any", "step", "save"], "checkpoint.every=2", *options
    )


@pytest.mark.slow
def test_killed_twenty_times(runs, tmp_path):
    options = ("run.steps=400", "run.eval_every=20", "checkpoint.every=2", "checkpoint.keep=2")
    runs.train(tmp_path / "whole", *options[:2])
    check_survives(runs, tmp_path / "whole", tmp_path / "run", ["any", "save", "step", "save"] * 5, *options)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_checkpoints_are_set_aside_and_the_run_ends_the_same(whole_run, runs, tmp_path, capsys):
    """The three newest checkpoints are damaged in different ways, and the run goes back to the fourth."""
    run_dir = cut_back(whole_run, tmp_path / "run", 21)
    folder = lambda step: run_dir / "checkpoints" / str(step)
    empty(folder(21))
    flip(largest(folder(18), "arrays"))
    truncate(largest(folder(15), "arrays"))

    assert main(["doctor", str(run_dir), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["restorable_step"] == 12
    problems = {entry["step"]: entry["problems"] for entry in found["checkpoints"]}
    assert [step for step in problems if problems[step]] == [15, 18, 21]

    log = runs.train(run_dir)
    for step in (21, 18, 15):
        damaged = f"checkpoint {run_dir}/checkpoints/{step} fails verification; setting it aside as {step}.corrupt-1"
        assert damaged in log
    assert f"restored checkpoint {run_dir}/checkpoints/12" in log
    assert_same_run(whole_run, run_dir)

    assert main(["doctor", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "21.corrupt-1: found damaged and set aside" in out and f"the run can resume from step {STEPS}" in out


def test_no_restorable_checkpoint_is_exit_81_and_nothing_is_lost(runs, whole_run, tmp_path, capsys):
    run_dir = cut_back(whole_run, tmp_path / "run", 6)
    for step in (3, 6):
        flip(largest(run_dir / "checkpoints" / str(step), "arrays"))
    assert main(["doctor", str(run_dir)]) == 81
    assert "no checkpoint passes verification" in capsys.readouterr().err
    record = (run_dir / "metrics.jsonl").read_bytes()
    assert "no checkpoint in" in runs.train(run_dir, code=81)
    assert (run_dir / "metrics.jsonl").read_bytes() == record
    assert store(run_dir).set_aside() == ["3.corrupt-1", "6.corrupt-1"]


def test_doctor_reports_a_healthy_run(whole_run, capsys):
    assert main(["doctor", str(whole_run)]) == 0
    out, err = capsys.readouterr()
    assert out.count(": intact, ") == STEPS // 3 and err == ""

"""Toy runs that are killed at critical moments end in the same state as an uninterrupted run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.small_run import TIMINGS, finish, wait_for
from train.goodput.ledger import read_goodput

TOY = pathlib.Path(__file__).parents[1] / "helpers" / "toy_run.py"


def start(run_dir, **options) -> subprocess.Popen:
    """Starts the toy run in its own process; its log goes to `run_dir/log`."""
    run_dir.mkdir(exist_ok=True)
    words = [f"{key}={value}" for key, value in options.items()]
    with (run_dir / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, str(TOY), str(run_dir), *words], stdout=log, stderr=log)


def result(run_dir) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def records(run_dir) -> list[dict]:
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read]


def kill_at(process, run_dir, moment: str, luck: random.Random) -> None:
    """Sends SIGKILL at `moment`, after the process has saved something."""
    checkpoints = run_dir / "checkpoints"
    names = lambda: {p.name for p in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    before = names()
    saving = lambda: any("tmp" in name for name in names() - before)
    wait_for(saving if moment == "save" else lambda: names() - before - {".writable"}, process)
    time.sleep(luck.random() * (0.01 if moment == "save" else 0.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL


def check_survives(tmp_path, kills: int) -> None:
    luck = random.Random(0)
    options = {"stop": 6 * kills, "every": 3, "size": 512, "delay": 0.05}
    assert finish(start(tmp_path / "whole", **options | {"delay": 0})) == 0
    run_dir, killed = tmp_path / "killed", 0
    while not (run_dir / "result.json").exists():
        assert killed <= 3 * kills, "the run does not get on"
        process = start(run_dir, **options)
        if killed < kills:
            kill_at(process, run_dir, "save" if killed % 2 else "step", luck)
            killed += 1
        else:
            assert finish(process) == 0, (run_dir / "log").read_text()
    assert killed == kills
    assert result(run_dir)["checksums"] == result(tmp_path / "whole")["checksums"]
    assert records(run_dir) == records(tmp_path / "whole")
    assert result(run_dir)["resumed_from"] > 0
    assert not [p for p in (run_dir / "checkpoints").iterdir() if not p.name.isdigit()]


@pytest.mark.slow
def test_killed_eight_times(tmp_path):
    check_survives(tmp_path, 8)


@pytest.mark.slow
def test_killed_twenty_four_times(tmp_path):
    check_survives(tmp_path, 24)


def test_sigterm_saves_and_exits_75(tmp_path):
    process = start(tmp_path, stop=10**6, every=10**5, delay=0.01)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists() and len(records(tmp_path)) > 2, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process) == 75, (tmp_path / "log").read_text()
    (saved,) = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert finish(start(tmp_path, stop=saved + 2, every=10**5)) == 0
    assert result(tmp_path)["resumed_from"] == saved


def test_a_hang_is_ended_by_the_watchdog_with_its_stacks(tmp_path):
    process = start(tmp_path, stop=10**6, every=10**5, hang=6, watchdog=1.0)
    assert finish(process) == 77, (tmp_path / "log").read_text()
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert "process 0 made no progress for" in stacks
    assert "in batches" in stacks and "in fit" in stacks
    goodput = read_goodput(tmp_path)
    assert goodput.attempts[-1].reason == "Watchdog" and goodput.seconds["data_wait"] > 0.5


def test_refused_updates_exit_79_and_damage_beyond_repair_81(tmp_path):
    assert finish(start(tmp_path, stop=20, nan=10)) == 79
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert steps == [4, 8, 12]  # the last save may have been unfinished when the 13th update was refused
    for step in steps:
        for path in (tmp_path / "checkpoints" / str(step) / "arrays").rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):
        assert finish(start(tmp_path, stop=20)) == 81
    assert "to start over" in (tmp_path / "log").read_text().lower()

"""The supervisor of a job on this machine, with small programs in the place of training."""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from launch.clusters.supervisor import Patience, Restarts, progress, supervise
from tests.helpers.small_run import PATIENCE, REPOSITORY

QUICK = Restarts(budget=5, crash_loop=3, first_delay=0.0)


def run(command: str, *words: object, count: int = 2, run_dir=pathlib.Path("nowhere"), restarts=None, **more):
    """(exit code, lines) of a job whose processes run a bash command; $0, $1, ... are the words."""
    out = io.StringIO()
    code = supervise(["bash", "-c", command, *map(str, words)], count, run_dir, restarts, out=out, **more)
    return code, out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("by_process", "code"), [("0 0", 0), ("75 75", 75), ("78 134", 78), ("137 76", 76), ("76 1", 1), ("79 76", 79)]
)
def test_exit_codes_are_combined(by_process, code):
    assert run("codes=($0); exit ${codes[$MAVERICK_PROCESS_ID]}", by_process)[0] == code


def test_processes_are_connected_over_loopback():
    code, lines = run("echo $MAVERICK_COORDINATOR $MAVERICK_NUM_PROCESSES $MAVERICK_PROCESS_ID", count=3)
    found = sorted(re.fullmatch(r"\[(\d)\] (127\.0\.0\.1:\d+) 3 (\d)", line).groups() for line in lines)
    assert code == 0 and [(one[0], one[2]) for one in found] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert len({one[1] for one in found}) == 1


@pytest.mark.parametrize(
    ("by_process", "said"),
    [
        ("137 134", ["process 0 was killed (signal 9)", "process 1 aborted, as after the death of another process"]),
        ("76 143", ["process 1 was killed (signal 15)"]),
        ("76 75", []),
    ],
)
def test_it_says_which_process_a_signal_ended(by_process, said, caplog):
    assert run("codes=($0); exit ${codes[$MAVERICK_PROCESS_ID]}", by_process)[0] == 76
    assert caplog.messages == said


def test_lines_have_the_number_of_their_process_once():
    command = "echo plain; echo 'I [1] train.run: told'; echo '[1] compiling'; printf 'no end'"
    told = ["I [1] train.run: told", "[1] compiling"]
    assert sorted(run(command)[1]) == sorted([*told, *told, "[0] plain", "[1] plain", "[0] no end", "[1] no end"])
    assert run("echo plain", count=1)[1] == ["plain"]


def test_a_long_line_does_not_fill_the_memory():
    _, lines = run("head -c 400000 /dev/zero | tr '\\0' x", count=1)
    assert sum(map(len, lines)) == 400_000 and max(map(len, lines)) <= 1 << 18


def test_what_outlives_a_failed_process_is_killed(caplog):
    command = "[[ $MAVERICK_PROCESS_ID = 1 ]] && exit 79; trap '' TERM; while :; do sleep 0.1; done"
    assert run(command, patience=Patience(after_failure=0.5))[0] == 79
    assert caplog.messages == ["process 0 has not ended since another one did; it is killed"]


def test_the_others_may_finish_a_save():
    command = "[[ $MAVERICK_PROCESS_ID = 0 ]] && sleep 1; exit 75"
    assert run(command, patience=Patience(after_failure=0.1))[0] == 75


# ---- restarts --------------------------------------------------------------------------------------------------------

STARTS = 'n=$(($(cat "$0/starts" 2>/dev/null || echo 0) + 1)); echo $n > "$0/starts"; '
ADVANCES = STARTS + 'mkdir -p "$0/checkpoints/$n"; '


def starts(folder: pathlib.Path) -> int:
    return int((folder / "starts").read_text())


@pytest.mark.parametrize("code", [75, 76, 77, 137])
def test_a_job_that_a_restart_can_help_is_started_again(code, tmp_path, caplog):
    command = ADVANCES + f"((n < 3)) && {{ ((n == 1)) && exit {code}; exit 75; }}; exit 0"
    assert run(command, tmp_path, count=1, run_dir=tmp_path, restarts=QUICK)[0] == 0
    assert starts(tmp_path) == 3
    assert [m for m in caplog.messages if "restart 1 of 5" in m] and [
        m for m in caplog.messages if "restart 2 of 5" in m
    ]


@pytest.mark.parametrize("code", [1, 78, 79, 80, 81, 130, 3])
def test_a_job_that_a_restart_cannot_help_is_not(code, tmp_path, caplog):
    assert run(ADVANCES + f"exit {code}", tmp_path, count=1, run_dir=tmp_path, restarts=QUICK)[0] == code
    assert starts(tmp_path) == 1
    said = "this machine may compute wrong results" if code == 80 else "a restart cannot help"
    assert len(caplog.messages) == 1 and said in caplog.messages[0] and f"exit code {code}" in caplog.messages[0]


def test_the_budget_of_restarts_ends(tmp_path, caplog):
    assert run(ADVANCES + "exit 76", tmp_path, count=1, run_dir=tmp_path, restarts=QUICK)[0] == 76
    assert starts(tmp_path) == 6
    assert "the maximum of 5 restarts is reached; the same command goes on from step 6" in caplog.messages[-1]


def test_a_crash_loop_ends_early_and_says_so(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 7}) + "\n")
    assert run(STARTS + "exit 76", tmp_path, count=1, run_dir=tmp_path, restarts=QUICK)[0] == 76
    assert starts(tmp_path) == 3
    assert "crash loop: 3 starts in a row ended without progress" in caplog.messages[-1]
    assert "went past step 7" in caplog.messages[-1]


def test_progress_begins_the_count_of_failures_anew(tmp_path):
    command = STARTS + '((n % 3)) || mkdir -p "$0/checkpoints/$n"; ((n < 5)) && exit 76; exit 0'
    assert run(command, tmp_path, count=1, run_dir=tmp_path, restarts=QUICK)[0] == 0
    assert starts(tmp_path) == 5


def test_delays_double_without_progress(tmp_path):
    from launch.clusters.supervisor import RestartRule

    rule = RestartRule(Restarts(crash_loop=9, first_delay=1.0, longest_delay=10.0), tmp_path)
    assert [rule.after(76) for _ in range(5)] == [2.0, 4.0, 8.0, 10.0, 10.0]
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert rule.after(75) == 1.0


def test_progress_is_the_highest_step_of_checkpoints_and_metrics(tmp_path):
    assert progress(tmp_path) == -1
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "40.tmp").mkdir()
    assert progress(tmp_path) == 12
    (tmp_path / "metrics.jsonl").write_text('{"step": 13}\n[1]\n{"step": "x"}\n{"step": 17, "lo')
    assert progress(tmp_path) == 13


# ---- signals ---------------------------------------------------------------------------------------------------------

PROGRAM = (
    "import logging, pathlib, sys\nfrom launch.clusters.supervisor import Restarts, supervise\nlogging.basicConfig()\n"
    "sys.exit(supervise(['bash', '-c', sys.argv[1]], 2, pathlib.Path('x'), Restarts(first_delay=float(sys.argv[2]))))"
)
PATIENT = "trap 'sleep 0.3; exit 75' TERM; echo up $$; while :; do sleep 0.05; done"


def start(command: str, delay: float = 0.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, command, str(delay)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_no_restart_follows(number):
    with start(PATIENT.replace("TERM", number.name[3:])) as process:
        assert [process.stdout.readline().split()[1] for _ in range(2)] == ["up", "up"]
        process.send_signal(number)
        assert process.wait(PATIENCE) == 75
        assert "restart" not in process.stderr.read()


def test_a_signal_between_two_starts_ends_the_wait():
    with start("exit 75", delay=3000) as process:
        while "restart 1" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends children with their parent")
def test_no_process_outlives_the_supervisor():
    with start(PATIENT) as process:
        pids = [int(process.stdout.readline().split()[2]) for _ in range(2)]
        process.kill()
        end = time.monotonic() + PATIENCE
        while any(pathlib.Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids):
            assert time.monotonic() < end
            time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"

"""Two processes of four devices over loopback: they share checkpoints, stop at the same step and exit with codes."""

import json
import logging
import logging.handlers
import os
import signal
import socket
import subprocess
import sys

import pytest

from maverick_jax import progress
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from tests.helpers.small_run import PATIENCE, finish, wait_for
from tests.maverick_jax.checkpoint.test_store import largest, truncate
from tests.runs.test_toy_killed import TOY, records, result, start
from train.faults import processes


def start_two(run_dir, **options) -> list[subprocess.Popen]:
    run_dir.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    words = [f"{key}={value}" for key, value in {"devices": 4, **options}.items()]
    processes = []
    for number in range(2):
        environment = os.environ | {
            "MAVERICK_COORDINATOR": coordinator,
            "MAVERICK_NUM_PROCESSES": "2",
            "MAVERICK_PROCESS_ID": str(number),
        }
        with (run_dir / f"log-{number}").open("ab") as log:
            command = [sys.executable, str(TOY), str(run_dir), *words]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    return processes


def finish_all(processes) -> list[int]:
    try:
        return [process.wait(PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()


def wait_for_lines(process, run_dir, count: int) -> None:
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(records(run_dir)) >= count, process)


@pytest.mark.slow
def test_a_run_moves_between_one_process_and_two(tmp_path):
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    assert finish(start(whole, devices=8, stop=24)) == 0
    assert finish_all(start_two(moved, stop=8)) == [0, 0], (moved / "log-0").read_text()
    assert finish(start(moved, devices=8, stop=16)) == 0
    assert result(moved)["resumed_from"] == 8
    truncate(largest(moved / "checkpoints" / "16", "arrays"))
    assert finish_all(start_two(moved, stop=24)) == [0, 0], (moved / "log-0").read_text()
    assert result(moved)["resumed_from"] == 12  # step 16 was damaged, and both processes went back to the same step
    assert result(moved)["checksums"] == result(whole)["checksums"]
    assert [r for r in records(moved) if r["step"] == 24] == [r for r in records(whole) if r["step"] == 24]
    store = CheckpointStore(moved / "checkpoints", read_only=True)
    assert store.steps() == [16, 20, 24] and store.set_aside() == ["16.corrupt-1"]
    assert [store.verify(step) for step in store.steps()] == [[], [], []]


@pytest.mark.slow
def test_a_slow_process_is_named(tmp_path):
    assert finish_all(start_two(tmp_path, stop=12, every=100, slow=1)) == [0, 0], (tmp_path / "log-0").read_text()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    named = [line["slowest_rank"] for line in lines if "slowest_rank" in line]
    assert named and set(named) == {1}
    assert "process 1 is slow: it takes " in (tmp_path / "log-0").read_text()


def test_sigterm_to_one_stops_both_at_one_saved_step(tmp_path):
    processes = start_two(tmp_path, stop=10**6, every=10**5, delay=0.02)
    wait_for_lines(processes[0], tmp_path, 3)
    processes[1].send_signal(signal.SIGTERM)
    assert finish_all(processes) == [75, 75], (tmp_path / "log-0").read_text()
    (saved,) = CheckpointStore(tmp_path / "checkpoints", read_only=True).steps()
    assert records(tmp_path)[-1]["step"] <= saved
    assert CheckpointStore(tmp_path / "checkpoints", read_only=True).verify(saved) == []


@pytest.mark.parametrize(
    ("number", "dies"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow),
    ],
)
def test_a_dead_peer_leads_to_exit_76(number, dies, tmp_path):
    processes = start_two(tmp_path, stop=10**6, every=10**5, delay=0.02, peer_timeout=8)
    wait_for_lines(processes[0], tmp_path, 3)
    processes[dies].send_signal(number)
    host, left = socket.gethostname(), tmp_path / f"log-{1 - dies}"
    try:
        # if process 0 dies, JAX may detect it first and abort; the launchers count that as 76
        assert processes[1 - dies].wait(120) in ((76,) if dies else (76, -signal.SIGABRT)), (
            tmp_path / "log-0"
        ).read_text()
    finally:
        finish_all([kill(process) for process in processes])
    if dies:
        said = left.read_text()
        assert f"process 1 on {host} ended" in said or f"process 1 on {host} has given" in said
        assert "start the job again: it resumes from" in said


def kill(process):
    process.kill()
    return process


@pytest.mark.parametrize("host", ["", "0.0.0.0", "[::]", "*"])
def test_a_coordinator_that_would_listen_everywhere_is_refused(host, monkeypatch):
    variables = {"COORDINATOR": f"{host}:123", "NUM_PROCESSES": "2", "PROCESS_ID": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(f"MAVERICK_{name}", value)
    with pytest.raises(InputError, match="would listen on every interface"):
        processes.initialize_from_environment()


def test_lines_have_the_number_of_their_process(monkeypatch):
    handlers = [logging.handlers.BufferingHandler(99), logging.handlers.BufferingHandler(99)]
    root = logging.Logger("root")
    root.handlers = list(handlers)
    monkeypatch.setattr(processes.logging, "getLogger", lambda: root)
    monkeypatch.setattr(progress, "_number", "")
    processes._number_lines(1)
    root.info("saved")
    root.warning("odd")
    for handler in handlers:
        assert [(record.name, record.getMessage()) for record in handler.buffer] == [("[1] root", "odd")]


def test_process_0_informs(monkeypatch):
    monkeypatch.setattr(progress, "_number", "")
    root = logging.Logger("root")
    root.addHandler(handler := logging.handlers.BufferingHandler(99))
    monkeypatch.setattr(processes.logging, "getLogger", lambda: root)
    processes._number_lines(0)
    root.info("saved")
    assert [(record.name, record.getMessage()) for record in handler.buffer] == [("[0] root", "saved")]


def test_a_restart_begins_at_the_newest_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_checkpoints", None)
    for name in ("20", "100", "120.tmp"):
        (tmp_path / name).mkdir()
    processes.resumes_from(tmp_path)
    assert processes._restart() == "start the job again: it resumes from step 100"

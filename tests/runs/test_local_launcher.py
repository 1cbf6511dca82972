"""`maverick launch local --restart` trains for real: a killed process, a restart, and who listens meanwhile."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.helpers.small_run import PATIENCE, lines, losses, store, wait_for
from tests.helpers.sockets import is_loopback, listeners

pytestmark = pytest.mark.slow


def children(pid: int) -> list[int]:
    """The processes of a supervisor, in the order of their starts."""
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(map(int, found))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_leads_to_a_restart_that_finishes(runs, tmp_path):
    run_dir, steps = tmp_path / "run", 60
    words = [f"run.steps={steps}", "run.eval_every=0", "mesh.fsdp=4", "optimizer.accumulation_steps=1"]
    command = ["launch", "local", runs.config, *words, "--run-dir", str(run_dir), "--processes", "2", "--restart"]
    program = [sys.executable, "-m", "launch.cli", *command]
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context((tmp_path / name).open("w")) for name in ("out", "err"))
        process = subprocess.Popen(program, env=runs.environment(devices=4), cwd=runs.root, stdout=out, stderr=err)
        stack.callback(process.kill)
        wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 6, process)
        pids = children(process.pid)
        found = [address for pid in pids for address in listeners(pid)]
        assert found and all(map(is_loopback, found)), found
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, (tmp_path / "out").read_text()
    said = (tmp_path / "err").read_text()
    assert "process 1 was killed (signal 9)" in said
    assert "the job ended with exit code 76 (a process failed); restart 1 of 50 in 1 s" in said
    assert [line["step"] for line in lines(run_dir) if "loss" in line] == list(range(1, steps + 1))
    assert store(run_dir).verify(steps) == []
    assert "training from step" in (tmp_path / "out").read_text()

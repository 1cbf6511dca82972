"""`maverick launch local --restart` trains for real: a killed process, a restart, and who listens meanwhile."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.helpers.small_run import PATIENCE, lines, losses, store, wait_for

pytestmark = pytest.mark.slow
LISTEN, LOOPBACK_4, MAPPED = "0A", "7F", "0000000000000000FFFF0000"


def children(pid: int) -> list[int]:
    """The processes of a supervisor, in the order of their starts."""
    found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(map(int, found))


def listeners(pid: int) -> list[str]:
    """Local addresses, as the kernel writes them, on which a process listens."""
    links = [os.readlink(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    mine = {link[8:-1] for link in links if link.startswith("socket:")}
    tables = [pathlib.Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTEN and row[9] in mine]


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
        assert found and all(address.removeprefix(MAPPED).endswith(LOOPBACK_4) for address in found), found
        os.kill(pids[1], signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, (tmp_path / "out").read_text()
    said = (tmp_path / "err").read_text()
    assert "process 1 was killed (signal 9)" in said
    assert "the job ended with exit code 76 (a process failed); restart 1 of 50 in 1 s" in said
    assert [line["step"] for line in lines(run_dir) if "loss" in line] == list(range(1, steps + 1))
    assert store(run_dir).verify(steps) == []
    assert "training from step" in (tmp_path / "out").read_text()

"""A rendered job in a real SLURM of one node: preempted, requeued, finished."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers import one_node_slurm
from tests.helpers.small_run import REPOSITORY, lines, losses, store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(one_node_slurm.missing() is not None, reason=f"SLURM: {one_node_slurm.missing()}"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with one_node_slurm.one_node_slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def programs(tmp_path):
    """A folder with `maverick` as the command of this checkout."""
    path = tmp_path / "bin" / "maverick"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m launch.cli "$@"\n')
    path.chmod(0o755)
    return path.parent


def has_ended(job: dict[str, str]) -> bool:
    return job["JobState"] not in ("PENDING", "COMPLETING", "RUNNING", "CONFIGURING")


def render(*words: object) -> str:
    """The job's file, as the command prints it."""
    command = [sys.executable, "-m", "launch.cli", "launch", "slurm", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(slurm, text: str, programs, environment: dict[str, str]) -> str:
    """Submits a job file. Returns the job's number."""
    path = slurm.folder / "job.sbatch"
    path.write_text(text)
    variables = {
        **environment,
        "PATH": f"{programs}:{slurm.environment['PATH']}",
        "SLURM_CONF": slurm.environment["SLURM_CONF"],
    }
    said = subprocess.run(["sbatch", str(path)], env=variables, cwd=slurm.folder, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return re.findall(r"Submitted batch job (\d+)", said.stdout)[0]


def test_a_preempted_job_is_requeued_and_finishes(slurm, programs, runs, tmp_path):
    run_dir, steps = tmp_path / "run", 150
    words = [
        f"run.steps={steps}",
        "run.eval_every=0",
        "checkpoint.every=1000",
        "optimizer.accumulation_steps=1",
        "mesh.fsdp=4",
    ]
    text = render(runs.config, *words, "--processes", 2, "--devices-per-node", 8, "--run-dir", run_dir)
    number = submit(slurm, text.replace("#SBATCH --gpus", "##SBATCH --gpus"), programs, runs.environment(devices=4))
    log = slurm.folder / f"small-{number}.log"
    running = slurm.wait_for(number, lambda job: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 5)
    assert (running["JobState"], running["NumTasks"]) == ("RUNNING", "2"), slurm.logs()
    slurm("scancel", "--signal=TERM", number)
    again = slurm.wait_for(number, lambda job: job["Restarts"] == "1")
    assert not has_ended(again), log.read_text()
    (saved,) = store(run_dir).steps()
    assert 5 < saved < steps
    done = slurm.wait_for(number, has_ended)
    said = log.read_text()
    assert (done["JobState"], done["ExitCode"]) == ("COMPLETED", "0:0"), said
    assert "exit code 75: restarting (restart 1 of 50)" in said
    assert f"training from step {saved} to {steps}" in said
    assert [line["step"] for line in lines(run_dir) if "loss" in line] == list(range(1, steps + 1))
    assert store(run_dir).verify(steps) == []


@pytest.mark.parametrize(("code", "state"), [(78, "FAILED"), (1, "FAILED")])
def test_a_job_that_a_restart_cannot_help_is_not_requeued(code, state, slurm, programs, runs):
    (programs / "maverick").write_text(f"#!/bin/sh\nexit $((SLURM_PROCID == 0 ? {code} : 76))\n")
    number = submit(slurm, render(runs.config, "--processes", 2), programs, runs.environment())
    done = slurm.wait_for(number, has_ended)
    assert (done["JobState"], done["ExitCode"], done["Restarts"]) == (state, f"{code}:0", "0")


def test_a_suspected_node_is_left_out_by_a_new_job(slurm, programs, runs, tmp_path):
    (programs / "maverick").write_text("#!/bin/sh\nexit $((SLURM_PROCID == 0 ? 80 : 76))\n")
    text = render(runs.config, "--processes", 2, "--run-dir", tmp_path / "run")
    number = submit(slurm, text, programs, runs.environment())
    done = slurm.wait_for(number, has_ended)
    assert (done["JobState"], done["ExitCode"]) == ("FAILED", "80:0")
    said = (slurm.folder / f"small-{number}.log").read_text()
    host = (tmp_path / "run" / "suspected_nodes").read_text().strip()
    assert f"exit code 80: a new job without {host} (restart 1 of 50)" in said
    second = re.findall(r"Submitted batch job (\d+)", said)[0]
    assert (slurm.job(second)["ExcNodeList"], slurm.job(second)["JobState"]) == (host, "PENDING")
    slurm("scancel", second)

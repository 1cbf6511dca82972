"""Jobs on this machine: the script, and what its processes get."""

import io
import subprocess
import sys

import pytest

from launch.cli import main
from launch.clusters import local
from tests.helpers.launch_jobs import job, rendered
from tests.helpers.small_run import PATIENCE


@pytest.fixture
def venv(tmp_path):
    """A virtual environment whose `maverick` prints what it was asked."""
    (tmp_path / "v env" / "bin").mkdir(parents=True)
    (tmp_path / "v env" / "bin" / "activate").write_text(f'export PATH="{tmp_path}/v env/bin:$PATH"\n')
    path = tmp_path / "v env" / "bin" / "maverick"
    path.write_text('#!/bin/sh\necho "$MAVERICK_PROCESS_ID $CUDA_VISIBLE_DEVICES $NCCL_DEBUG|$@"; exit ${CODE:-0}\n')
    path.chmod(0o755)
    return tmp_path / "v env"


def test_the_script_starts_the_job(venv):
    words = ["local", "pretrain_tiny", "--run-dir", "it's", "--processes", 2, "--venv", venv]
    text = rendered(*words)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=PATIENCE)
    asked = done.stdout.partition("|")[2].strip()
    assert asked == "launch local pretrain_tiny run.dir=it's --processes 2 --submit", done.stderr


def test_processes_share_the_gpus_and_get_the_flags(venv, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    out, gpus = io.StringIO(), ["--accelerator", "gpu", "--devices-per-node", 4]
    asked = job("local", "pretrain_tiny", "mesh.fsdp=4", "--processes", 2, *gpus, "--venv", venv)
    assert local.start(asked, out) == 0
    assert sorted(out.getvalue().splitlines()) == [
        "[0] 0 0,1 INFO|train pretrain_tiny mesh.fsdp=4",
        "[1] 1 2,3 INFO|train pretrain_tiny mesh.fsdp=4",
    ]


@pytest.mark.parametrize("code", [75, 78, 79])
def test_the_command_ends_with_the_jobs_exit_code(code, venv, monkeypatch, capsys):
    monkeypatch.setenv("CODE", str(code))
    assert main(["launch", "local", "pretrain_tiny", "--submit", "--venv", str(venv)]) == code
    assert f"the job ended with exit code {code}" in capsys.readouterr().err


def test_restart_starts_the_job_too(venv, tmp_path, capsys):
    words = ["launch", "local", "pretrain_tiny", "--run-dir", str(tmp_path / "run"), "--restart", "--venv", str(venv)]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert (
        '"submitted": "' in out and "train pretrain_tiny" in err and "train pretrain_tiny" not in out.partition("{")[0]
    )


def test_the_program_is_this_python_without_a_virtual_environment(monkeypatch):
    seen = {}
    monkeypatch.setattr(local, "supervise", lambda command, *rest, **more: seen.update(command=command) or 0)
    local.start(job("local", "pretrain_tiny"), io.StringIO())
    assert seen["command"] == [sys.executable, "-m", "launch.cli", "train", "pretrain_tiny"]

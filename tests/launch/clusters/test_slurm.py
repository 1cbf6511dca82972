"""The batch file does what it says, with small programs in the place of SLURM's."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from tests.helpers.launch_jobs import rendered
from tests.helpers.small_run import PATIENCE
from train.config_files import read_config

PROGRAMS = {
    "srun": 'while [[ $1 = -* ]]; do echo "$1" >> "$LOG.srun"; shift; done; '
    'SLURMD_NODENAME=n2 SLURM_LOCALID=1 "$@"; exit $?',
    "scontrol": 'case "$*" in "show hostnames"*) printf "n1\\nn2\\n" ;; '
    '"show node n1") printf "NodeName=n1\\n   NodeAddr=10.0.0.7 X=y\\n" ;; *) echo "$@" >> "$LOG.scontrol" ;; esac',
    "sbatch": 'echo "MAVERICK_RESTARTS=$MAVERICK_RESTARTS $@" >> "$LOG.sbatch"',
    "maverick": 'printf "%s\\0" "$@" > "$LOG.arguments"; '
    'echo "$MAVERICK_COORDINATOR $CUDA_VISIBLE_DEVICES" >> "$LOG.maverick"; exit ${CODE:-0}',
}


@pytest.fixture
def batch(tmp_path):
    """`batch(text, **environment)`: runs a batch file; what the programs were asked is in the files `log.PROGRAM`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)

    def run(text: str, **environment: object) -> subprocess.CompletedProcess:
        (tmp_path / "job.sbatch").write_text(text)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAVERICK", "SLURM", "CUDA"))}
        more = {
            "PATH": f"{folder}:{kept['PATH']}",
            "SLURM_JOB_ID": 7,
            "SLURM_JOB_NODELIST": "n[1-2]",
            "LOG": tmp_path / "log",
        }
        env = {**kept, **{key: str(value) for key, value in {**more, **environment}.items()}}
        return subprocess.run(
            ["bash", "job.sbatch"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE
        )

    return run


def said_to(tmp_path: pathlib.Path, program: str) -> str:
    path = tmp_path / f"log.{program}"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("code", "restarts", "requeued", "leaves"),
    [
        (0, 0, False, 0),
        (75, 0, True, 75),
        (134, 3, True, 76),
        (143, 3, True, 76),
        (77, 2, True, 77),
        (76, 5, False, 76),
        (1, 0, False, 1),
        (78, 0, False, 78),
        (79, 0, False, 79),
        (81, 0, False, 81),
        (127, 0, False, 127),
    ],
)
def test_the_job_is_requeued_after_restartable_exit_codes(code, restarts, requeued, leaves, batch, tmp_path):
    done = batch(rendered("slurm", "pretrain_tiny", "--max-restarts", 5), CODE=code, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == leaves, done.stderr
    assert said_to(tmp_path, "scontrol") == ("requeue 7\n" if requeued else "")
    assert said_to(tmp_path, "sbatch") == ""


def test_a_suspected_node_is_left_out_by_a_new_job(batch, tmp_path):
    text = rendered("slurm", "pretrain_tiny", "--max-restarts", 5, "--run-dir", tmp_path / "a run")
    done = batch(text, CODE=80, SLURM_RESTART_COUNT=1, MAVERICK_RESTARTS=2)
    assert done.returncode == 80, done.stderr
    assert said_to(tmp_path, "sbatch") == "MAVERICK_RESTARTS=4 --exclude=n2 job.sbatch\n"
    assert (tmp_path / "a run" / "suspected_nodes").read_text() == "n2\n"
    assert said_to(tmp_path, "scontrol") == ""
    assert batch(text, CODE=80, SLURM_RESTART_COUNT=3, MAVERICK_RESTARTS=2).returncode == 80
    assert said_to(tmp_path, "sbatch").count("\n") == 1  # the budget is spent


def test_nodes_that_are_excluded_stay_so(batch, tmp_path):
    batch(rendered("slurm", "pretrain_tiny", "--exclude", "n8,n9", "--run-dir", tmp_path / "run"), CODE=80)
    assert said_to(tmp_path, "sbatch") == "MAVERICK_RESTARTS=1 --exclude=n8,n9,n2 job.sbatch\n"


@pytest.mark.parametrize(
    ("given", "coordinator"),
    [
        ({}, r"10\.0\.0\.7:(2\d|3[01])\d{3}"),
        ({"MAVERICK_HEAD_ADDRESS": "192.168.1.7"}, r"192\.168\.1\.7:(2\d|3[01])\d{3}"),
        ({"MAVERICK_PORT": "12355"}, r"10\.0\.0\.7:12355"),
    ],
)
def test_the_coordinator_has_one_address_and_a_drawn_port(given, coordinator, batch, tmp_path):
    for _ in range(3):
        assert batch(rendered("slurm", "pretrain_tiny"), **given).returncode == 0
    found = said_to(tmp_path, "maverick").split()
    assert len(found) == 3 and all(re.fullmatch(coordinator, one) for one in found)
    assert len(set(found)) > 1 or "MAVERICK_PORT" in given


def test_processes_of_a_node_share_its_gpus(batch, tmp_path):
    text = rendered("slurm", "pretrain_tiny", "mesh.fsdp=8", "--accelerator", "h100:1x8", "--processes", 4)
    assert batch(text, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7").returncode == 0
    assert said_to(tmp_path, "maverick").split()[1] == "2,3"


HOSTILE = ["it's", 'a"b', "$(touch owned)", "`touch owned`", "a\nb", "<<name>>", "; touch owned;", "é", "\\"]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_reach_the_program_as_they_are(value, batch, tmp_path):
    folder = tmp_path / f"x{value}"
    text = rendered("slurm", "pretrain_tiny", "--run-dir", folder)
    assert "\n#SBATCH --uid" not in text
    done = batch(text, CODE=80)
    assert done.returncode == 80, done.stderr
    words = (tmp_path / "log.arguments").read_text().split("\0")
    assert words[:2] == ["train", "pretrain_tiny"] and len(words) == 4
    assert read_config("pretrain_tiny", words[2:3]).run.directory == folder
    assert (folder / "suspected_nodes").exists() and not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_virtual_environment_is_a_path(value, batch, tmp_path):
    venv = tmp_path / f"v{value}"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text(f'echo activated >> "{tmp_path}/log.venv"')
    done = batch(rendered("slurm", "pretrain_tiny", "--venv", venv))
    assert (done.returncode, said_to(tmp_path, "venv")) == (0, "activated\n"), done.stderr
    assert not (tmp_path / "owned").exists()


def test_containers_are_started_by_pyxis_or_apptainer(batch, tmp_path):
    assert batch(rendered("slurm", "pretrain_tiny", "--image", "registry.example/m:1")).returncode == 0
    assert "--container-image=registry.example/m:1" in said_to(tmp_path, "srun")
    (tmp_path / "bin" / "apptainer").write_text('#!/bin/sh\necho "$@" > "$LOG.apptainer"\n')
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    assert batch(rendered("slurm", "pretrain_tiny", "--image", "/images/m.sif")).returncode == 0
    assert said_to(tmp_path, "apptainer") == (
        f"exec --bind {tmp_path} --pwd {tmp_path} /images/m.sif maverick train pretrain_tiny\n"
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "words", ["slurm pretrain_tiny", "slurm pretrain_maverick_h200x512 --image a.sif", "local pretrain_tiny"]
)
def test_shellcheck_has_no_remarks(words, tmp_path):
    (tmp_path / "job").write_text(rendered(*shlex.split(words)))
    done = subprocess.run(["shellcheck", "--shell=bash", tmp_path / "job"], capture_output=True, text=True)
    assert done.stdout == ""

"""SkyPilot's task file; `make launchers` checks it against SkyPilot's own schema (tests/runs/test_launchers.py)."""

import os
import re
import subprocess

import pytest
import yaml

from launch.clusters import exit_codes
from maverick_jax.errors import InputError
from tests.helpers.launch_jobs import CASES, rendered
from tests.helpers.small_run import PATIENCE
from train.config_files import read_config


@pytest.fixture
def run(tmp_path):
    """`run(words)`: what `maverick` was asked by the `run` part of the task, and how that ended."""
    (tmp_path / "maverick").write_text(
        '#!/bin/sh\nprintf "%s\\0" "$MAVERICK_COORDINATOR" "$@" > said; exit ${CODE:-0}\n'
    )
    (tmp_path / "maverick").chmod(0o755)

    def call(*words: object, **environment: object) -> tuple[list[str], int]:
        nodes = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **nodes, **{k: str(v) for k, v in environment.items()}}
        command = ["bash", "-c", yaml.safe_load(rendered("skypilot", *words))["run"]]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        return (tmp_path / "said").read_text().split("\0")[:-1], done.returncode

    return call


def test_resources_and_recovery():
    task = yaml.safe_load(rendered(*CASES["skypilot_h200.yaml"].split()))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (64, "H200:8")
    assert task["resources"]["job_recovery"] == {
        "max_restarts_on_errors": 0,
        "recover_on_exit_codes": list(exit_codes.RESTART),
    }
    assert task["setup"].strip() == "pip install '.[gpu]'"
    assert task["envs"]["NCCL_DEBUG"] == "WARN"
    with pytest.raises(InputError, match="does not say which GPU"):
        rendered("skypilot", "pretrain_tiny", "--accelerator", "gpu")


def test_an_image_needs_no_setup():
    task = yaml.safe_load(rendered(*CASES["skypilot_cpu.yaml"].split()))
    assert task["resources"]["image_id"] == "docker:registry.example/maverick:1"
    assert "setup" not in task and "accelerators" not in task["resources"] and "envs" not in task


def test_processes_are_numbered_as_nodes_are(run):
    said, code = run("pretrain_tiny", "--nodes", 2)
    assert said == ["10.0.0.5:8476", "train", "pretrain_tiny", "run.dir=/runs/pretrain_tiny"]
    assert code == 0


@pytest.mark.parametrize(("code", "leaves"), [(75, 75), (78, 78), (134, 76), (143, 76), (1, 1)])
def test_a_process_that_a_signal_ended_counts_as_lost(code, leaves, run):
    assert run("pretrain_tiny", CODE=code)[1] == leaves


@pytest.mark.parametrize("name", ["plain", "it's", "$(touch owned)"])
def test_a_config_of_ones_own_travels_with_the_job(name, run, tmp_path):
    own = tmp_path / f"{name}.yaml"
    own.write_text("base: pretrain_tiny\nrun: {name: own, steps: 7}\noptimizer: {learning_rate: 1e-3}\n")
    said, code = run(own, "--run-dir", f"/runs/{name}")
    assert (code, said[1:]) == (0, ["train", "maverick-config.yaml"])
    expected = read_config(str(own)).run.model_copy(update={"dir": f"/runs/{name}"})
    assert read_config(str(tmp_path / "maverick-config.yaml")).run == expected
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("value", ["it's", "$(touch owned)", "a\n b: c", "<<name>>", "END_OF_CONFIG\n", "\u2028"])
def test_hostile_values_reach_the_program_as_they_are(value, run, tmp_path):
    said, code = run("pretrain_tiny", "--run-dir", f"/runs/{value}", "run.eval_every=\n 7")
    assert (code, said[3]) == (0, "run.eval_every=\n 7")
    assert str(read_config("pretrain_tiny", said[3:]).run.directory) == f"/runs/{value}"
    assert not (tmp_path / "owned").exists()


def test_addresses_are_those_between_the_nodes():
    assert not re.search(r"0\.0\.0\.0|\[::\]", rendered("skypilot", "pretrain_tiny"))

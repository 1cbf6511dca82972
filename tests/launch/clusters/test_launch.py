"""`maverick launch`: prints, writes or starts a job."""

import json
import os
import pathlib
import shlex
import stat

import pytest

from launch.cli import main
from launch.clusters.launch import launch
from maverick_jax.errors import CheckFailed, InputError
from tests.helpers.launch_jobs import CASES, GOLDEN, parsed, rendered


@pytest.mark.parametrize("name", CASES)
def test_rendered_jobs_are_as_kept(name):
    """`python -m tests.helpers.launch_jobs` writes them again, after a change that was meant."""
    assert rendered(*CASES[name].split()) == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_command_in_a_job_renders_it_again(name):
    text = (GOLDEN / name).read_text()
    command = text.partition("# Made by: ")[2].partition("\n#\n")[0].replace("\n#", "")
    assert rendered(*shlex.split(command)[2:]) == text


def test_no_job_listens_on_all_interfaces():
    for name in CASES:
        assert not [word for word in ("0.0.0.0", "[::]", "hostNetwork") if word in (GOLDEN / name).read_text()]


def test_a_job_is_printed(capsys):
    assert main(["launch", "slurm", "pretrain_tiny", "run.steps=50", "--processes", "2"]) == 0
    assert capsys.readouterr().out == (GOLDEN / "slurm_cpu.sbatch").read_text()


def test_a_job_is_written_and_its_path_is_the_last_line(tmp_path, capsys):
    assert main(["launch", "gke", "pretrain_tiny", "--out", str(tmp_path / "a" / "b")]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    assert path == str(tmp_path / "a" / "b" / "pretrain-tiny.yaml")
    assert pathlib.Path(path).read_text() == rendered("gke", "pretrain_tiny", "--out", "x")


def test_json_is_one_object(capsys):
    assert main(["launch", "kubernetes", "pretrain_tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "target": "kubernetes",
        "job": rendered("kubernetes", "pretrain_tiny"),
        "path": None,
        "submitted": None,
    }


@pytest.mark.parametrize(
    "words", [["run.stpes=3"], ["data.batch_size=7", "--accelerator", "h100"], ["--partition", "a b"]]
)
def test_nothing_is_written_for_a_bad_config_or_option(words, tmp_path, capsys):
    assert main(["launch", "slurm", "pretrain_tiny", "--out", str(tmp_path / "out"), *words]) == 78
    assert capsys.readouterr().out == "" and not (tmp_path / "out").exists()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program(name, body)`: a program of the cluster; all others are absent."""

    def make(name: str, body: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return make


@pytest.mark.parametrize(
    ("target", "name", "words"),
    [
        ("slurm", "sbatch", ""),
        ("gke", "kubectl", "apply -f "),
        ("skypilot", "sky", "jobs launch --yes "),
    ],
)
def test_a_job_is_submitted_as_rendered(target, name, words, program, tmp_path, capsys):
    program(name, f'for last; do :; done; cp "$last" {tmp_path}/got; echo "$@"; echo Submitted 7')
    assert main(["launch", target, "pretrain_tiny", "--submit"]) == 0
    asked, said = capsys.readouterr().out.splitlines()
    assert asked.startswith(f"{words}/") and said == "Submitted 7"
    assert (tmp_path / "got").read_text() == rendered(target, "pretrain_tiny")
    assert main(["launch", target, "pretrain_tiny", "--submit", "--out", str(tmp_path / "kept")]) == 0
    assert f"{words}{tmp_path}/kept/pretrain-tiny." in capsys.readouterr().out


def test_a_job_that_the_cluster_refuses_is_an_error(program):
    program("sbatch", "echo no such partition >&2; exit 3")
    with pytest.raises(CheckFailed, match="sbatch refused the job with exit code 3: no such partition"):
        launch(parsed(["slurm", "pretrain_tiny", "--submit"]))


def test_a_missing_program_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not installed here"):
        launch(parsed(["slurm", "pretrain_tiny", "--submit", "--out", str(tmp_path / "out")]))
    assert not os.listdir(tmp_path)

"""A run on two processes of four devices equals the run on one process of eight."""

import subprocess
import sys

import pytest

from tests.helpers.small_run import (
    PATIENCE,
    Place,
    checksums,
    cut_back,
    finish,
    free_port,
    lines,
    log_of,
    losses,
    store,
)
from tests.helpers.trajectory_rows import tuning, write_runs

pytestmark = pytest.mark.slow  # the fast part is in tests/train/faults/test_processes.py, without a model

MESHES = {"mixed": ("mesh.data=2", "mesh.expert=2", "mesh.tensor=2"), "fsdp": ("mesh.data=1", "mesh.fsdp=8")}
OPTIONS = ("run.steps=10", "run.eval_every=5", "checkpoint.every=5", "optimizer.accumulation_steps=1")


def train_on(count: int, runs: Place, run_dir, *overrides) -> None:
    """Trains on `count` processes with eight devices in all."""
    job = {"MAVERICK_COORDINATOR": f"127.0.0.1:{free_port()}", "MAVERICK_NUM_PROCESSES": count}
    processes = [
        runs.start(run_dir, *overrides, devices=8 // count, log=f"log-{n}", MAVERICK_PROCESS_ID=n, **job)
        for n in range(count)
    ]
    try:
        found = [finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert found == [0] * count, "".join(log_of(run_dir, f"log-{n}") for n in range(count))


def assert_close(one, other) -> None:
    """Checks that the data is the same and that losses agree to 1e-5."""
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    for name in ("step", "tokens", "eval_tokens"):
        assert [line.get(name) for line in lines(one)] == [line.get(name) for line in lines(other)]


@pytest.fixture(scope="module")
def on_one(runs):
    """`on_one("fsdp")`: the run directory of the run in one process of eight devices."""

    def make(mesh: str):
        run_dir = runs.root / f"eight-{mesh}"
        if not run_dir.exists():
            runs.train(run_dir, *MESHES[mesh], *OPTIONS, devices=8)
        return run_dir

    return make


@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_equal_one(mesh, on_one, runs, tmp_path):
    train_on(2, runs, tmp_path / "two", *MESHES[mesh], *OPTIONS)
    one, two = on_one(mesh), tmp_path / "two"
    assert_close(one, two)
    assert store(two).verify(10) == []
    assert len(losses(two)) == 10  # one process writes the record


@pytest.mark.parametrize("mesh", MESHES)
def test_one_process_resumes_from_two(mesh, on_one, runs, tmp_path):
    one, two = on_one(mesh), tmp_path / "two"
    train_on(2, runs, two, *MESHES[mesh], *OPTIONS)
    run_dir = cut_back(two, tmp_path / "run", 5)
    said = runs.train(run_dir, *MESHES[mesh], *OPTIONS, devices=8)
    assert "restored checkpoint" in said
    assert_close(one, run_dir)
    assert checksums(run_dir, 5) == checksums(two, 5)


@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_resume_from_one(mesh, on_one, runs, tmp_path):
    run_dir = cut_back(on_one(mesh), tmp_path / "run", 5)
    train_on(2, runs, run_dir, *MESHES[mesh], *OPTIONS)
    assert_close(on_one(mesh), run_dir)
    assert "I [0] maverick_jax.checkpoint.store: restored checkpoint" in log_of(run_dir, "log-0")
    assert "restored checkpoint" not in log_of(run_dir, "log-1")  # process 0 informs


def test_a_run_on_trajectories_resumes_from_four_processes_on_two(runs, tmp_path):
    """From a checkpoint in the middle of an epoch, with trajectories weighted by their outcomes."""
    words = (*tuning(write_runs(tmp_path / "runs.jsonl", 60)), "data.batch_size=8", *MESHES["mixed"], *OPTIONS,
             "data.sources.shop.trajectories.outcomes={failure: 0.5}", "logging.every=1")  # fmt: skip
    runs.train(tmp_path / "one", *words, devices=8)
    train_on(4, runs, tmp_path / "four", *words)
    assert_close(tmp_path / "one", tmp_path / "four")
    run_dir = cut_back(tmp_path / "four", tmp_path / "run", 5)
    train_on(2, runs, run_dir, *words)
    assert "restored checkpoint" in log_of(run_dir, "log-0")
    assert_close(tmp_path / "one", run_dir)
    told = lines(run_dir)
    assert [line["step"] for line in told if "kind_tokens" in line] == list(range(1, 11))
    tokens = lambda where: [line["kind_tokens"] for line in lines(where) if "kind_tokens" in line]
    assert tokens(run_dir) == tokens(tmp_path / "one")


def test_the_local_launcher_trains_and_returns_error_codes(on_one, runs, tmp_path):
    def launch(*overrides) -> tuple[int, str]:
        command = [sys.executable, "-m", "launch.cli", "launch", "local", runs.config, "--processes", "2", "--submit"]
        words = [f"run.dir={tmp_path}/run", *MESHES["mixed"], *OPTIONS, *overrides]
        done = subprocess.run(
            [*command, *words],
            env=runs.environment(devices=4),
            cwd=runs.root,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    code, said = launch()
    assert code == 0, said
    assert_close(on_one("mixed"), tmp_path / "run")
    code, said = launch("model.hidden_size=64")
    assert code == 78 and "model.hidden_size: 32 there, 64 here" in said
    assert "Traceback" not in said
    code, said = launch("mesh.data=4")
    assert code == 78 and "mesh: data=4, expert=2, tensor=2 needs 16 devices; this job has 8" in said

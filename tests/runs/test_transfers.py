"""Arrays are sent between host and devices only by explicit calls: a real run under JAX's transfer guard."""

import jax
import numpy as np
import pytest

from launch.cli import main
from tests.helpers.small_run import lines, store
from train import updates

STEPS = 4


@pytest.fixture
def guarded_fit(monkeypatch):
    """Runs the training loop with its steps, evaluations and saves under the guard. Returns the list of its calls."""
    fit, calls = updates.fit, []

    def guarded(*args, **kwargs):
        calls.append(kwargs)
        with jax.transfer_guard("disallow"):
            return fit(*args, **kwargs)

    monkeypatch.setattr(updates, "fit", guarded)
    return calls


def test_a_run_on_eight_devices_makes_no_implicit_transfer(guarded_fit, runs, tmp_path, monkeypatch):
    """On a CPU, the guard detects transfers to a device and between devices."""
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    words = ["optimizer.accumulation_steps=1", "mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2"]
    often = [f"run.steps={STEPS}", "run.eval_every=2", "checkpoint.every=2"]
    assert main(["train", runs.config, f"run.dir={tmp_path / 'run'}", *words, *often]) == 0
    assert [(call["start"], call["stop"]) for call in guarded_fit] == [(0, STEPS)]
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in written if "eval_loss" in line] == [2, 4]
    assert store(tmp_path / "run").steps() == [2, 4]


def test_the_guard_detects_an_implicit_transfer():
    double = jax.jit(lambda x: x + x)
    double(np.zeros(3, np.float32))
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        double(np.zeros(3, np.float32))

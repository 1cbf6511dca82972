"""The hooks of a run and their order."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest

from maverick_jax.accounting.devices import DEVICES
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.sharding import make_mesh
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.evaluation.during import Evaluating
from train.hook_order import hooks_of

REPLAY = lambda stop, hooks: None
EVERYTHING = [
    "logging.progress=true",
    "logging.profile_start=2",
    "logging.watchdog_seconds=60",
    "guard.compare_every=5",
]


@pytest.fixture
def names(tmp_path):
    """`names(overrides)`: the class names of a run's hooks, in order. The hooks are closed."""
    (tmp_path / "small.yaml").write_text(CONFIG)

    def of(words, evaluated=()) -> list[str]:
        config = read_config(str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}", *words])
        hooks = hooks_of(config, CheckpointStore(tmp_path / "checkpoints"), {}, evaluated, 0, REPLAY)
        for hook in reversed(hooks):
            hook.close()
        return [type(hook).__name__ for hook in hooks]

    return of


def test_a_save_comes_after_lines_evaluation_and_comparison_and_before_preemption(names):
    evaluated = [Evaluating(dict, 5, "run.eval_every"), Evaluating(dict, 7, "run.eval_tasks_every")]
    assert names(EVERYTHING, evaluated) == [
        *("TrainingLines", "Notices", "ProgressBar", "BadUpdates", "NonFiniteBudget", "ProfilerTrace", "Watchdog"),
        *("Evaluation", "Evaluation", "ReplicaCheck", "Checkpoint", "Preemption"),
    ]


def test_hooks_that_the_config_turns_off_are_absent(names):
    assert names([]) == ["TrainingLines", "Notices", "BadUpdates", "NonFiniteBudget", "Checkpoint", "Preemption"]


def test_outside_the_main_thread_there_are_no_signal_handlers(names):
    found = []
    thread = threading.Thread(target=lambda: found.extend(names([])))
    thread.start()
    thread.join()
    assert found == ["TrainingLines", "Notices", "BadUpdates", "NonFiniteBudget", "Checkpoint"]


def test_mfu_is_of_the_given_flops(tmp_path, monkeypatch):
    """Two FLOPs per token on devices of 100 FLOP/s each."""
    device = dataclasses.replace(DEVICES["h200"], peak_flops=100.0)
    monkeypatch.setattr("train.hook_order.device_of", lambda kind: device)
    (tmp_path / "small.yaml").write_text(CONFIG)
    config = read_config(str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}"])
    with jax.set_mesh(make_mesh()):
        lines, *others = hooks_of(
            config, CheckpointStore(tmp_path / "checkpoints"), {}, (), 0, REPLAY, flops_per_token=2.0
        )
    lines.on_metrics(24, {"loss": np.float32(1.0)}, 4.0)
    for hook in reversed([lines, *others]):
        hook.close()
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["mfu"] == pytest.approx(8 * 32 / 4.0 * 2.0 / (100.0 * jax.device_count()))

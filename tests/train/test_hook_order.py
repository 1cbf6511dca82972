"""Which hooks a run has, and in which order."""

import threading

import pytest

from maverick_jax.checkpoint.store import CheckpointStore
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.hook_order import hooks_of

EVERYTHING = ["logging.progress=true", "logging.profile_start=2", "logging.watchdog_seconds=60"]


@pytest.fixture
def names(tmp_path):
    """`names(overrides)`: the classes of a run's hooks in their order; they are closed again."""
    (tmp_path / "small.yaml").write_text(CONFIG)

    def of(words, evaluate=None) -> list[str]:
        config = read_config(str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}", *words])
        hooks = hooks_of(config, CheckpointStore(tmp_path / "checkpoints"), {}, evaluate, 0)
        for hook in reversed(hooks):
            hook.close()
        return [type(hook).__name__ for hook in hooks]

    return of


def test_a_save_comes_after_lines_and_evaluation_and_before_preemption(names):
    assert names(EVERYTHING, evaluate=dict) == [
        *("TrainingLines", "Notices", "ProgressBar", "NonFiniteBudget", "ProfilerTrace", "Watchdog"),
        *("Evaluation", "Checkpoint", "Preemption"),
    ]


def test_hooks_that_the_config_turns_off_are_not_there(names):
    assert names([]) == ["TrainingLines", "Notices", "NonFiniteBudget", "Checkpoint", "Preemption"]


def test_outside_the_main_thread_there_are_no_signal_handlers(names):
    found = []
    thread = threading.Thread(target=lambda: found.extend(names([])))
    thread.start()
    thread.join()
    assert found == ["TrainingLines", "Notices", "NonFiniteBudget", "Checkpoint"]

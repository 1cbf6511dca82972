"""Two jobs on one run directory: one works, the other stops at once and changes nothing."""

import signal

import pytest

from maverick_jax.checkpoint.lease import holder_of
from maverick_jax.errors import InputError, RunInUse
from tests.helpers.lease_holder import other_process
from tests.helpers.small_run import STEPS, contents, finish, lines, log_of, wait_for
from train.config_files import read_config
from train.run import train_to_end


@pytest.mark.slow
def test_of_the_same_command_twice_one_works_and_the_other_stops_at_once(runs, tmp_path):
    """The first is held up meanwhile, so that it is still there however slowly the second starts."""
    run_dir = tmp_path / "run"
    first = runs.start(run_dir, log="first")
    wait_for(lambda: holder_of(run_dir / "checkpoints") is not None, first)
    first.send_signal(signal.SIGSTOP)
    runs.train(run_dir, code=75, log="second")
    first.send_signal(signal.SIGCONT)
    (said,) = log_of(run_dir, "second").splitlines()
    assert said.startswith(f"{run_dir}/checkpoints is in use by process {first.pid} on ")
    assert finish(first) == 0
    assert [line["step"] for line in lines(run_dir) if "loss" in line] == list(range(1, STEPS + 1))
    assert holder_of(run_dir / "checkpoints") is None


def test_a_run_in_use_is_refused_before_anything_is_read_compiled_or_written(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("train.session.Session.open", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("of the other job")
    with other_process(tmp_path / "run" / "checkpoints"):
        before = contents(tmp_path / "run")
        with pytest.raises(RunInUse, match="run/checkpoints is in use by process"):
            train_to_end(read_config(runs.config, [f"run.dir={tmp_path / 'run'}"]))
        assert contents(tmp_path / "run") == before


def test_a_config_that_is_refused_leaves_no_directory(runs, tmp_path):
    words = [f"run.dir={tmp_path / 'run'}", "data.sources={x: {path: nowhere.txt}}", "optimizer.accumulation_steps=1"]
    with pytest.raises(InputError, match=r"nowhere.txt"):
        train_to_end(read_config(runs.config, words))
    assert not (tmp_path / "run").exists()

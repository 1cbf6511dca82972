"""Which config a checkpoint's run has, and from when on its wall time is recorded."""

import pytest

from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.evaluate import evaluate
from train.goodput import timeline
from train.run_folder import begins, config_of_run


@pytest.mark.parametrize("named", ["[no_such_package.objectives]", "antigravity", "{a: 1}"])
def test_plugins_that_a_runs_folder_names_are_refused(tmp_path, named):
    (tmp_path / "config.yaml").write_text(f"run: {{name: x}}\nplugins: {named}\n")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "checkpoints" / "4"):
        with pytest.raises(InputError, match=r"config.yaml:2: plugins: .* not imported from a run's folder; give the"):
            evaluate(str(place))


@pytest.mark.parametrize("text", ["run: {name: x}\n", "plugins: []\n", "plugins: null\n"])
def test_the_config_of_a_run_without_plugins_is_found(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    assert config_of_run(tmp_path / "checkpoints" / "4") == tmp_path / "config.yaml"


@pytest.mark.parametrize(("saved", "recorded"), [(None, True), (7, True), (24, False)])
def test_a_start_that_finds_the_run_complete_leaves_no_trace(saved, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("train.run_folder.resumes_from", lambda path: None)
    (tmp_path / "small.yaml").write_text(CONFIG)
    if saved:
        (tmp_path / "run" / "checkpoints" / str(saved)).mkdir(parents=True)
    store = CheckpointStore(tmp_path / "run" / "checkpoints", read_only=True)
    with timeline.timed():
        begins(read_config(str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}"]), store)
    assert (tmp_path / "run" / "goodput.jsonl").exists() == recorded

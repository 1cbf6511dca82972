"""Which config a checkpoint's run has."""

import pytest

from maverick_jax.errors import InputError
from train.evaluate import evaluate
from train.run_folder import config_of_run


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

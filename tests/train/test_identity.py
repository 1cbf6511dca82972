"""What must not change under a run that goes on."""

import types

import pytest

from maverick_jax.errors import InputError
from tests.helpers.small_run import CONFIG
from train.config_files import read_config
from train.identity import metadata, refuse_other_run


class Saved:
    """A store whose newest checkpoint has this metadata."""

    def __init__(self, meta, copied=None):
        self._meta = meta
        self.copies = copied and types.SimpleNamespace(newest_metadata=lambda: copied)

    def known_steps(self):
        return [3]

    def meta(self, step):
        return self._meta


@pytest.fixture
def config(tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    return lambda *words: read_config(
        str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}", "data.seed=7", *words]
    )


def resume(there: dict, config) -> None:
    refuse_other_run(config, metadata(config, "data", {}), Saved(there))


def test_another_seed_is_refused_also_where_the_data_has_its_own(config):
    there = metadata(config(), "data", {})
    resume(there, config())
    with pytest.raises(InputError, match=r"run\.seed: 0 there, 1 here"):
        resume(there, config("run.seed=1"))


def test_early_checkpoints_do_not_know_their_seed(config):
    there = metadata(config(), "data", {})
    with pytest.raises(InputError, match=r"run\.seed: 0 there, 1 here"):
        resume(there, config("run.seed=1"))
    del there["seed"]
    resume(there, config("run.seed=1"))


def test_a_refusal_names_the_ways_that_exist(config):
    here = config("model.hidden_size=64")
    with pytest.raises(InputError) as error:
        resume(metadata(config(), "data", {}), here)
    assert "run.name" in str(error.value) and f"model.init_from={here.run.directory}" in str(error.value)


def test_copies_of_another_run_are_refused_whatever_is_here(config):
    """They would be restored if they are newer, and deleted if they are older."""
    here = metadata(config(), "data", {})
    refuse_other_run(config(), here, Saved(here, copied=here))
    with pytest.raises(InputError, match=r"run\.name: other at checkpoint\.copies\.to, small here"):
        refuse_other_run(config(), here, Saved(here, copied=here | {"run": "other"}))

"""What a run says before it compiles, and what a changed config does to a run that goes on."""

import logging

import jax
import pytest

from maverick_jax.settings.strict_yaml import dump
from maverick_jax.sharding import make_mesh
from tests.helpers.small_run import CONFIG
from train import announce
from train.config_files import read_config, resolved
from train.session import Parts, Session

COSINE = ("optimizer.schedule=cosine", "optimizer.min_ratio=0.1")


@pytest.fixture
def config(tmp_path):
    """`config(*words)`: the small run's, in a run directory of its own."""
    (tmp_path / "small.yaml").write_text(CONFIG.replace("accumulation_steps: 2", "accumulation_steps: 1"))
    return lambda *words: read_config(str(tmp_path / "small.yaml"), [f"run.dir={tmp_path / 'run'}", *words])


def started(before) -> None:
    """Leaves what a run with this config has written."""
    before.run.directory.mkdir(parents=True, exist_ok=True)
    (before.run.directory / "config.yaml").write_text(dump(resolved(before)))


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "train.announce"]


def test_a_run_says_what_it_is_before_anything_is_compiled(config, caplog, monkeypatch, tmp_path):
    import jax._src.compiler

    monkeypatch.setattr(jax._src.compiler, "compile_or_get_cached", lambda *_, **__: pytest.fail("compiled"))
    monkeypatch.setenv("MAVERICK_CACHE", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO)
    here = config()
    Session.open(here, Parts(rows=True, references=True, run_dir=True))
    run, model, mesh, data = said(caplog)
    assert run == f"run small in {tmp_path / 'run'}: 24 steps"
    assert model == (
        f"model: {here.model.num_parameters():,} parameters, {here.model.num_active_parameters():,} active per token; "
        f"{here.model.num_hidden_layers} layers"
    )
    assert mesh == "mesh: 8 x cpu (data 8)"
    assert data.startswith("data: tinyshakespeare: ") and "8 rows (256 tokens) a step" in data


def test_the_mesh_is_named_by_its_axes():
    assert announce.of_mesh(make_mesh({"data": 2, "fsdp": 4})) == "8 x cpu (data 2 x fsdp 4)"
    assert announce.of_mesh(make_mesh({}, jax.devices()[:1])) == "one device (cpu)"


def test_more_steps_say_what_the_rate_does(config, caplog):
    started(config(*COSINE, "run.steps=20"))
    caplog.set_level(logging.INFO)
    announce.start(config(*COSINE, "run.steps=40"), 20, 0)
    assert said(caplog) == [
        "training from step 20 to 40",
        "changed since the run was last started: run.steps 20 -> 40",
        "the schedule is another than the saved run's (steps 20 -> 40): the learning rate of the next update is "
        "0.00117 instead of 0.0002; it is 0.000203 at the end, after step 40",
    ]


def test_another_rate_says_what_it_does(config, caplog):
    started(config())
    announce.start(config("optimizer.learning_rate=1e-3"), 12, 0)
    (line,) = said(caplog)
    assert "(learning_rate 0.002 -> 0.001): the learning rate of the next update is 0.001 instead of 0.002" in line


def test_refused_updates_do_not_count_in_the_schedule(config, caplog):
    started(config(*COSINE, "run.steps=20"))
    announce.start(config(*COSINE, "run.steps=40"), 20, 20)
    (line,) = said(caplog)
    assert "of the next update is 0.001 instead of 0.001;" in line  # the first of two steps of warmup


def test_what_changes_no_schedule_is_listed_alone(config, caplog):
    started(config())
    caplog.set_level(logging.INFO)
    announce.start(config("run.steps=48", "optimizer.weight_decay=0.2", "logging.every=3"), 12, 0)
    assert said(caplog) == [
        "training from step 12 to 48",
        "changed since the run was last started: optimizer.weight_decay 0.1 -> 0.2, run.steps 24 -> 48",
    ]


def test_nothing_changed_is_not_mentioned(config, caplog):
    started(config())
    caplog.set_level(logging.INFO)
    announce.start(config(), 12, 0)
    announce.start(config("run.steps=99"), 0, 0)  # what an earlier start left, without a step
    assert said(caplog) == ["training from step 12 to 24", "training from step 0 to 99"]


def test_a_finished_run_says_that_another_rate_changes_nothing(config, caplog):
    started(config())
    announce.start(config("optimizer.learning_rate=1e-3"), 24, 0)
    assert said(caplog) == [
        "optimizer.learning_rate 0.002 -> 0.001: no effect on a run that is complete; raise run.steps, or give it its "
        "own run.name"
    ]


@pytest.mark.parametrize(("steps", "told"), [(24, "24 of 24 steps"), (10, "24 steps, more than run.steps (10)")])
def test_a_finished_run_says_how_many_steps_it_has(config, caplog, steps, told):
    started(config())
    caplog.set_level(logging.INFO)
    announce.start(config(f"run.steps={steps}"), 24, 0)
    assert said(caplog)[0].endswith(f"is complete: {told}")


@pytest.mark.parametrize("text", ["[", "run: 3", "optimizer: {learning_rate: high}"])
def test_a_saved_config_that_cannot_be_read_is_passed_over(text, config, caplog):
    here = config()
    started(here)
    (here.run.directory / "config.yaml").write_text(text)
    announce.start(here, 12, 0)
    assert not any("schedule" in line for line in said(caplog))

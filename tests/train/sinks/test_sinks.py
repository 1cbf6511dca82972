"""Sinks of metrics: which packages they need, and what they are given."""

import importlib.util
import sys
import types

import pydantic
import pytest

from maverick_jax.errors import InputError
from train.metrics_writer import LoggingConfig, MetricsWriter
from train.sinks import SINKS, Trackio, WeightsAndBiases


class Recorder:
    """Stands in for a package: remembers every call by the last part of its name."""

    def __init__(self):
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    def of(self, name: str) -> list[tuple]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def package(monkeypatch):
    """`package(name)`: a recorder in the place of the package."""

    def fake(name: str) -> Recorder:
        found = Recorder()
        module = types.ModuleType(name)
        module.__getattr__ = lambda attribute: getattr(found, attribute)
        monkeypatch.setitem(sys.modules, name, module)
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: module if wanted == name else find(wanted))
        return found

    return fake


def test_the_kinds():
    assert set(SINKS.members) == {"tensorboard", "wandb", "trackio"}


@pytest.mark.parametrize(
    ("config", "key", "package", "extra"),
    [
        ({"tensorboard": True}, "logging.tensorboard", "tensorboardX", "tensorboard"),
        ({"wandb": "p"}, "logging.wandb", "wandb", "wandb"),
        ({"sinks": {"mine": {"kind": "trackio", "project": "p"}}}, "logging.sinks.mine", "trackio", "trackio"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(config, key, package, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"{key} is set, but the package {package} is not installed: .*\[{extra}\]"):
        MetricsWriter(tmp_path / "run", LoggingConfig(**config))
    assert not (tmp_path / "run").exists()


def write(tmp_path, config) -> None:
    writer = MetricsWriter(tmp_path / "run", config, public={"run": {"name": "run"}})
    writer.write({"step": 3, "loss": 2.0, "text": "x", "of": {"a": 1}})
    writer.close()
    writer.close()


def test_wandb_gets_numbers_and_the_config_but_no_command_line(package, tmp_path):
    found = package("wandb")
    write(tmp_path, LoggingConfig(sinks={"w": WeightsAndBiases(project="p", mode="offline")}))
    ((_, settings),) = found.of("Settings")
    assert settings["x_disable_meta"] and settings["console"] == "off" and settings["disable_git"]
    ((_, init),) = found.of("init")
    assert (init["project"], init["mode"], init["name"], init["resume"]) == ("p", "offline", "run", None)
    assert init["config"] == {"run": {"name": "run"}} and init["dir"] == str(tmp_path / "run")
    assert found.of("log") == [(({"loss": 2.0, "of/a": 1.0},), {"step": 3})]
    assert len(found.of("finish")) == 1


def test_a_run_online_is_resumed_under_its_name(package, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    found = package("wandb")
    write(tmp_path, LoggingConfig(wandb="p"))
    ((_, init),) = found.of("init")
    assert (init["id"], init["resume"]) == ("run", "allow")


@pytest.mark.parametrize("name", ["https://u:secret@host", "a/b", ""])
def test_a_project_is_a_name(name):
    """The packages log and store it."""
    for key in ({"wandb": name}, {"sinks": {"w": WeightsAndBiases.model_construct(project=name).model_dump()}}):
        with pytest.raises(pydantic.ValidationError):
            LoggingConfig(**key)


def test_trackio_gets_numbers(package, tmp_path):
    found = package("trackio")
    write(tmp_path, LoggingConfig(sinks={"t": Trackio(project="p")}))
    ((_, init),) = found.of("init")
    assert (init["project"], init["name"], init["embed"]) == ("p", "run", False)
    assert found.of("log") == [(({"loss": 2.0, "of/a": 1.0},), {"step": 3})]
    assert len(found.of("finish")) == 1


def test_tensorboard_gets_one_scalar_per_number(package, tmp_path):
    found = package("tensorboardX")
    write(tmp_path, LoggingConfig(tensorboard=True))
    assert found.of("add_scalar") == [(("loss", 2.0, 3), {}), (("of/a", 1.0, 3), {})]
    assert len(found.of("close")) == 1

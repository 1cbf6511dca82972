"""Counts the files between the command and the mathematics: those on the stack when a run calls its layers."""

import ast
import traceback

import pytest

from launch.cli import main
from maverick_jax.model.layers import Period
from tests.helpers.small_run import REPOSITORY
from train.objectives import OBJECTIVES
from train.objectives.base import Objective
from train.objectives.pretrain import Pretrain

PACKAGES = ("launch", "train", "data", "maverick_jax")
CHAIN = [
    "launch/cli.py",
    "train/run.py",
    "train/step.py",
    "train/objectives/pretrain.py",
    "maverick_jax/model/transformer.py",
]


class Reached(Exception):
    """Ends the run at the first call of the layers, which is in the step."""


def files_on_the_stack() -> list[str]:
    """The files of this project on the stack, outermost first. A file that is entered again is listed twice."""
    found = []
    for frame in traceback.extract_stack():
        inside = frame.filename.removeprefix(f"{REPOSITORY}/")
        if inside.startswith(tuple(f"{package}/" for package in PACKAGES)) and found[-1:] != [inside]:
            found.append(inside)
    return found


def test_five_files_are_on_the_stack_when_a_run_reaches_its_layers(runs, tmp_path, monkeypatch):
    stacks = []

    def layers(*args, **kwargs):
        stacks.append(files_on_the_stack())
        raise Reached

    monkeypatch.setattr(Period, "__call__", layers)
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    with pytest.raises(Reached):
        main(["train", runs.config, f"run.dir={tmp_path / 'run'}", "optimizer.accumulation_steps=1", "run.steps=1"])
    (there,) = stacks
    assert there == CHAIN


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 2), (3, 4)])
def test_a_file_imports_the_next(one, other):
    tree = ast.parse((REPOSITORY / CHAIN[one]).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert CHAIN[other].removesuffix(".py").replace("/", ".") in imported


def test_the_step_does_not_depend_on_an_objective():
    """The step imports the base of objectives and no objective."""
    tree = ast.parse((REPOSITORY / CHAIN[2]).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in imported if m and m.startswith("train.objectives")} == {"train.objectives.base"}
    assert OBJECTIVES.members["pretrain"] is Pretrain and issubclass(Pretrain, Objective)
    assert Pretrain.__module__ == "train.objectives.pretrain"

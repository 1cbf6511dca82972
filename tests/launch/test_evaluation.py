"""Arguments of `maverick eval` that do not go together, and comparisons of results."""

import argparse
import json

import pytest

from launch import arguments
from launch.cli import main
from launch.evaluation import run
from maverick_jax.errors import InputError
from tests.train.evaluation.test_results import A, B
from train.evaluation.results import write_results


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    arguments.evaluate(parser)
    return parser.parse_intermixed_args(words)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "CHECKPOINT is missing"), (["m", "--limit", "3"], "--limit: is for tasks of --harness"),
        (["m", "--chat"], "--chat: is for tasks"), (["m", "--allow-code"], "--allow-code: is for --tasks"),
        (["m", "--compare", "a", "b"], "3 models; expected two"), (["--compare", "a"], "1 models; expected two"),
        (["m", "c.yaml", "--compare", "b"], "expected no CONFIG"), (["m", "--compare", "b"], "m: holds no results"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(words, problem):
    with pytest.raises(InputError, match=problem):
        run(parsed(*words))


def task_fields(side: dict) -> dict:
    """The side with all fields that a page shows."""
    more = {"n": 2, "source": "s", "license": "l", "parts": {}, "figures": {}, "cut": None, "loop": None}
    more |= {"malformed": None, "unanswered": None}
    return {"tasks": {name: {**more, **task} for name, task in side["tasks"].items()}}


def test_two_results_are_compared_without_a_model(tmp_path, capsys):
    folders = [str(write_results(tmp_path / name, task_fields(side)).parent) for name, side in (("a", A), ("b", B))]
    assert main(["eval", "--compare", *folders, "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["comparison"]["tasks"]["x"]["paired"]["second_only"] == 5
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"evaluation.json", "evaluation.html"}
    assert main(["eval", folders[0], "--compare", folders[1]]) == 0
    assert "p (Holm)" in capsys.readouterr().out
    with pytest.raises(InputError, match="both have results already"):
        run(parsed("--compare", *folders, "--tasks", "toy_shop"))

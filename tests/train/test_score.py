"""A reward model from its run to scores of trajectories: heads are saved, found again, and judge as in evaluation."""

import json

import numpy as np
import pytest

from benchmarks import toy_shop_clerk
from data.trajectories.formats import ours
from launch.cli import main
from maverick_jax.errors import InputError
from tests.helpers.pair_rows import write_pairs
from train.evaluate import evaluate
from train.score import score, show


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory):
    """A run of a reward model, of two updates."""
    folder = tmp_path_factory.mktemp("reward")
    source = json.dumps({"path": str(write_pairs(folder / "pairs.jsonl", 40)), "format": "preferences"})
    runs.train(
        folder / "run", f"data.sources={{tinyshakespeare: null, pairs: {source}}}", "data.sequence_length=256",
        "data.held_out_fraction=0.3", "data.batch_size=4", "run.steps=2", "run.eval_every=2", "run.eval_batches=1",
        "checkpoint.every=2", "objective.kind=reward", "model.compute_dtype=float32",
    )  # fmt: skip
    return folder / "run"


@pytest.mark.slow
def test_a_checkpoint_scores_files_of_trajectories(runs, trained, tmp_path, monkeypatch, capsys):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(ours.write(run) + "\n" for run in toy_shop_clerk.runs(range(3), 0.0)))
    found = score(str(trained), str(path), out=str(tmp_path / "scores.jsonl"), checks=True)
    assert [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()] == found["runs"]
    assert all(np.isfinite(one["reward"]) and one["turns"] for one in found["runs"])
    assert found["checks"]["runs"] == 3 and "reward" in show(found)
    assert main(["score", str(trained), str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == found["runs"]
    with pytest.raises(InputError, match="exists"):
        score(str(trained), str(path), out=str(tmp_path / "scores.jsonl"))


@pytest.mark.slow
def test_an_evaluation_outside_the_run_equals_that_of_the_run(runs, trained, monkeypatch):
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    inside = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()][-1]
    outside = evaluate(str(trained))
    for name in ("eval_loss", "eval_margin", "eval_accuracy", "eval_calibration_error"):
        assert outside[name] == pytest.approx(inside[name], abs=1e-5)


@pytest.mark.slow
def test_a_model_without_heads_is_refused(runs, tmp_path):
    runs.train(tmp_path / "plain", "run.steps=2", "run.eval_every=0", "checkpoint.every=2")
    with pytest.raises(InputError, match=r"plain: no reward heads .* objective.kind: reward"):
        score(str(tmp_path / "plain"), "nothing")


def test_a_policy_without_checks_is_refused_before_a_model_is_read():
    with pytest.raises(InputError, match="policy: package:toy_shop_policy: only checks read it; expected --checks too"):
        score("nowhere", "nothing", policy="package:toy_shop_policy")

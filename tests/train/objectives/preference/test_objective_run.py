"""Runs on pairs, as users start them: every reference begins with indifference, a killed run goes on to the bit."""

import json

import numpy as np
import pytest

from tests.helpers.pair_rows import write_pairs
from tests.helpers.small_run import assert_same_run, checksums, cut_back, lines, losses
from train.config_files import read_config
from train.make_targets import make_targets

LOG_2 = float(np.log(2))


@pytest.fixture(scope="module")
def options(runs, tmp_path_factory):
    """Overrides that make the small run one on pairs, from a model that was trained for two updates."""
    folder = tmp_path_factory.mktemp("pairs")
    start = folder / "start"
    runs.train(start, "run.steps=2", "run.eval_every=0", "checkpoint.every=2")
    source = json.dumps({"path": str(write_pairs(folder / "pairs.jsonl", 40)), "format": "preferences"})
    return [f"data.sources={{tinyshakespeare: null, pairs: {source}}}", "data.sequence_length=256",
            "data.held_out_fraction=0.3", "data.batch_size=4", "run.steps=4", "run.eval_every=2", "run.eval_batches=1",
            "checkpoint.every=2", "objective.kind=preference", f"model.init_from={start}",
            "model.compute_dtype=float32"]  # fmt: skip


def first(run_dir) -> dict:
    """The metrics of the first update."""
    return lines(run_dir)[0]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit_and_leaves_routers_alone(runs, options, tmp_path):
    whole = tmp_path / "whole"
    runs.train(whole, *options)
    assert first(whole)["loss"] == pytest.approx(LOG_2, abs=1e-6)
    assert first(whole)["margin"] == pytest.approx(0, abs=1e-5)
    assert first(whole)["route_change"] == [0, 0]
    evaluated = [line for line in lines(whole) if "eval_loss" in line]
    assert {"eval_margin", "eval_accuracy", "eval_chosen_change"} <= evaluated[-1].keys()
    run_dir = cut_back(whole, tmp_path / "run", 2)
    runs.train(run_dir, *options)
    assert_same_run(whole, run_dir, 4)
    routers = [{k: v for k, v in checksums(whole, step).items() if k.endswith("moe/router")} for step in (2, 4)]
    assert routers[0] and routers[0] == routers[1]


@pytest.mark.slow
def test_stored_log_probabilities_replace_the_model_that_computed_them(runs, options, tmp_path, monkeypatch):
    runs.train(tmp_path / "live", *options)
    monkeypatch.setenv("MAVERICK_CACHE", str(runs.root / "cache"))
    start = next(word for word in options if word.startswith("model.init_from")).partition("=")[2]
    reference = {"kind": "stored", "path": str(tmp_path / "stored"), "model": start}
    stored = [*options, f"objective.reference={json.dumps(reference)}"]
    made = make_targets(runs.config, [*stored, "data.batch_size=16", "run.steps=1"])
    assert made["complete"]
    runs.train(tmp_path / "stored_run", *stored)
    found, expected = (losses(tmp_path / name) for name in ("stored_run", "live"))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_adapters_are_compared_with_the_model_without_them(runs, options, tmp_path):
    run_dir = tmp_path / "lora"
    runs.train(run_dir, *options, "trainable.lora={rank: 4}", "optimizer.learning_rate=1e-2")
    assert read_config(str(run_dir / "config.yaml")).objective.reference.kind == "adapters_off"
    assert first(run_dir)["loss"] == pytest.approx(LOG_2, abs=1e-6)
    assert first(run_dir)["margin"] == pytest.approx(0, abs=1e-5)
    assert [line for line in lines(run_dir) if "margin" in line][-1]["margin"] > 0


@pytest.mark.slow
def test_a_killed_run_of_kto_goes_on_to_the_bit(runs, options, tmp_path):
    source = next(word for word in options if word.startswith("data.sources=")).replace(
        '"format": "preferences"', '"format": "preferences", "preferences": {"mismatched": true}'
    )
    kto = [*(word for word in options if not word.startswith("data.sources=")), source, "objective.pair_loss.kind=kto"]
    whole = tmp_path / "whole"
    runs.train(whole, *kto)
    assert first(whole)["loss"] == pytest.approx(0.5, abs=1e-6) and first(whole)["divergence"] == 0
    assert any(line["divergence"] > 0 for line in lines(whole) if "divergence" in line)
    run_dir = cut_back(whole, tmp_path / "run", 2)
    runs.train(run_dir, *kto)
    assert_same_run(whole, run_dir, 4)


@pytest.mark.slow
def test_a_killed_run_of_a_reward_model_goes_on_to_the_bit(runs, options, tmp_path):
    reward = [*(word for word in options if not word.startswith("objective.")), "objective={kind: reward}"]
    whole = tmp_path / "whole"
    runs.train(whole, *reward)
    assert first(whole)["pairs"] > 0
    assert any(name.startswith("heads") for name in checksums(whole, 4))
    run_dir = cut_back(whole, tmp_path / "run", 2)
    runs.train(run_dir, *reward)
    assert_same_run(whole, run_dir, 4)

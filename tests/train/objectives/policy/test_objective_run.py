"""Runs of reinforcement learning, as users start them: a killed run goes on to the bit, also in the middle of a set of
episodes, and configs that do not fit are refused before anything is compiled."""

import json

import pytest

from data.trajectories import read_trajectories
from maverick_jax.errors import InputError
from tests.helpers.small_run import CONFIG, assert_same_run, checksums, cut_back, lines
from train.config import check_against_mesh
from train.config_files import read_config

POLICY = {
    "kind": "policy",
    "method": {"kind": "ppo"},
    "environments": {"sums": {"kind": "calculator", "declare": False, "operations": ["add"],
                              "policy": "package:toy_shop_policy"},
                     "products": {"kind": "calculator", "declare": False, "operations": ["multiply"]}},
    "rollouts": {"prompts": 4, "group": 2, "max_tokens": 80, "turn_tokens": 6, "slots": 4, "passes": 2,
                 "minibatches": 2, "learn_from_cut": True},
    "penalty": {"target": 0.5, "rate": 0.25}, "replay_routes": True,
}  # fmt: skip
OPTIONS = [f"objective={json.dumps(POLICY)}", "data={tokenizer: bytes, batch_size: 4, sequence_length: 80}",
           "run.eval_every=0", "optimizer.accumulation_steps=2", "model.compute_dtype=float32"]  # fmt: skip


SIZES = {"mesh.context=2": {"context": 2}, "mesh.data=4": {"data": 4}}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(runs, tmp_path):
    whole = tmp_path / "whole"
    options = [*OPTIONS, "run.steps=8", "checkpoint.every=2"]
    runs.train(whole, *options)
    assert len(list(read_trajectories(str(whole / "rollouts" / "set-000001.jsonl")))) == 8
    found = lines(whole)
    assert all("success" in found[i] for i in (0, 4)) and "success" not in found[1]
    assert [line["ratio_off"] for line in found[:1]] == [0.0] and found[-1]["value_error"] > 0
    multipliers = [line["multiplier"] for line in found]
    assert multipliers[0] == 1 and len(set(multipliers)) == 8  # it moves with every update
    routers = [{k: v for k, v in checksums(whole, step).items() if k.endswith("moe/router")} for step in (2, 8)]
    assert routers[0] and routers[0] == routers[1]
    for step in (4, 6):  # between two sets, and in the middle of one
        run_dir = cut_back(whole, tmp_path / f"run-{step}", step)
        runs.train(run_dir, *options)
        assert_same_run(whole, run_dir, 8)


@pytest.mark.slow
def test_weights_that_do_not_move_keep_the_ratio_at_1_to_rounding_over_three_passes(runs, tmp_path):
    """A learning rate of 1e-30 changes no weight that is not 0. What the later passes compare with comes from another
    program than the step's."""
    more = ["run.steps=6", "checkpoint.every=6", "optimizer.learning_rate=1e-30", "objective.rollouts.passes=3"]
    runs.train(tmp_path / "run", *OPTIONS, *more)
    found = [line for line in lines(tmp_path / "run") if "ratio_off" in line]
    assert len(found) == 6 and found[0]["ratio_off"] == 0
    assert all(line["clip_fraction"] == 0 and line["kl"] < 1e-12 for line in found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["data.batch_size=8"], "data.batch_size: 8 rows of 1 episodes, and an update has 4 episodes"),
        (["objective.environments.sums.policy=none.yaml"], "objective.environments.sums.policy: .*no such file"),
        (["data.sequence_length=60"], "data.sequence_length: 60 is less than objective.rollouts.max_tokens"),
        (["data.sources={x: {kind: synthetic}}"], "data.sources: objective.kind: policy learns from episodes"),
        (["objective={kind: pretrain}"], "data.sources: none, and objective.kind: pretrain learns from data"),
        (["mesh.context=2"], "mesh.context=1"),
        (["mesh.data=4", "objective.rollouts.slots=6"], "objective.rollouts.slots: 6 is not a multiple of 4"),
        (["model.init_config=small"], "model.init_config: is of the model at model.init_from"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, options, why):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.replace('  sources: {tinyshakespeare: {path: "package:tinyshakespeare"}}\n', ""))
    with pytest.raises(InputError, match=why):
        check_against_mesh(read_config(str(path), [*OPTIONS, *options]), SIZES.get(options[0], {}))

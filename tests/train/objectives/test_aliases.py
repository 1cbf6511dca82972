"""Usual names of training methods in place of an objective's kind."""

import logging

import pytest

from maverick_jax.errors import InputError
from train.config_files import read_config, resolved

STARTED = "reference: {path: runs/trajectory_tiny, config: trajectory_tiny}"
"""Where preference_tiny begins, which another kind of objective does not inherit."""


@pytest.mark.parametrize("word", ["objective=sft", "objective.kind=sft", "objective={kind: SFT}"])
def test_sft_is_another_name_of_trajectory_and_is_resolved(word, caplog):
    caplog.set_level(logging.INFO)
    config = read_config("trajectory_tiny", [word])
    assert resolved(config)["objective"]["kind"] == "trajectory"
    assert "objective: sft is the trajectory objective" in caplog.text


def test_other_keys_of_the_objective_are_kept():
    config = read_config("trajectory_tiny", ["objective={kind: sft, normalise: count}"])
    assert config.objective == read_config("trajectory_tiny", ["objective.normalise=count"]).objective


def test_a_kind_alone_is_a_section():
    assert read_config("pretrain_tiny", ["objective=pretrain"]).objective == read_config("pretrain_tiny").objective
    with pytest.raises(InputError, match=r"objective.kind: 'pretain' is not one of .*; did you mean pretrain\?"):
        read_config("pretrain_tiny", ["objective=pretain"])


@pytest.mark.parametrize("word", ["objective=kto", "objective={kind: CPO, beta: 0.1}"])
def test_a_method_that_is_not_there_is_one_error(word):
    with pytest.raises(InputError) as said:
        read_config("trajectory_tiny", [word])
    assert "is not there yet" in str(said.value) and "`sft`" in str(said.value)
    assert len(str(said.value).splitlines()) == 1


def test_a_reward_model_is_the_objective_reward():
    assert read_config("reward_tiny", ["objective=reward_model"]).objective.kind == "reward"
    with pytest.raises(InputError, match=r"objective.kind: reward needs a source of preferences"):
        read_config("pretrain_tiny", ["objective=reward"])


@pytest.mark.parametrize(
    ("word", "method"), [("GRPO", "grpo"), ("rlhf", "grpo"), ("ppo", "ppo"), ("dr_grpo", "dr_grpo")]
)
def test_names_of_policy_methods_choose_the_method(word, method):
    own = "environments: {sums: {kind: calculator}}, rollouts: {max_tokens: 96}"
    config = read_config("rl_tiny", [f"objective={{kind: {word}, {own}}}"])
    assert (config.objective.kind, config.objective.method.kind) == ("policy", method)


def test_sft_without_conversations_asks_for_them():
    with pytest.raises(InputError, match=r"objective.kind: trajectory needs a source of trajectories"):
        read_config("pretrain_tiny", ["objective=sft"])


@pytest.mark.parametrize(
    ("word", "loss"),
    [("dpo", "sigmoid"), ("DPO", "sigmoid"), ("ipo", "ipo")],
)
def test_names_of_preference_methods_choose_the_loss(word, loss):
    config = read_config("preference_tiny", [f"objective={{kind: {word}, {STARTED}}}"])
    assert (config.objective.kind, config.objective.pair_loss.kind) == ("preference", loss)


def test_other_keys_of_the_pair_loss_are_kept():
    config = read_config("preference_tiny", [f"objective={{kind: ipo, pair_loss: {{beta: 0.3}}, {STARTED}}}"])
    assert (config.objective.pair_loss.kind, config.objective.pair_loss.beta) == ("ipo", 0.3)

"""Batches of episodes: credit, parts of a set, what a later process reads of it, and environments that fail."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.accounting.layout import Layout
from maverick_jax.errors import InputError
from maverick_jax.sharding import ShardingRules
from tests.helpers import tiny
from tests.helpers.scripted_engine import ScriptedEngine
from tests.train.rollouts.test_playing import BYTES, Fails, solver
from train.objectives import Policy
from train.rollouts.policy_batches import PolicyBatches
from train.rollouts.rollout_files import KEPT_SETS
from train.rollouts.source import Setting

ROLLOUTS = {"prompts": 4, "group": 4, "max_tokens": 112, "turn_tokens": 40, "slots": 4, "time_limit": None}
STATE = types.SimpleNamespace(heads={}, objective={})
T = 224


def objective_of(kind="grpo", environments=None, penalty=None, **rollouts) -> Policy:
    environments = environments or {"calculator": {"kind": "calculator", "declare": False}}
    section = {"method": {"kind": kind}, "environments": environments, "rollouts": ROLLOUTS | rollouts,
               "penalty": penalty}  # fmt: skip
    return Policy.model_validate_json(json.dumps(section)).in_run(None, (), False)


@pytest.fixture
def source(tmp_path):
    """A maker of batches that a scripted engine writes for."""
    engine = ScriptedEngine(BYTES, solver)

    def make(objective: Policy, folder="run", left_out=0) -> PolicyBatches:
        rows = objective.rollouts.rows(T)
        batch = {"tokens": jnp.zeros((1, rows, T), jnp.int32)}
        if objective.replay_routes:
            batch["routes"] = jnp.zeros((1, rows, T, 2, 1), jnp.int16)
        setting = Setting(None, batch, lambda state: None, 5, BYTES, tmp_path / folder, lambda rows: rows,
                          lambda update: update - 1 + left_out)  # fmt: skip
        found = PolicyBatches(objective, setting)
        found._with_weights = lambda model: engine
        found._score = lambda model, heads, batch: {
            "old_log_probs": -1.0 - 0 * batch["advantages"][None],
            "old_values": 0.25 + batch["advantages"][None],
            **({"routes": batch["routes"][None] + np.arange(T, dtype=np.int16)[:, None, None]}
               if "routes" in batch else {}),
        }  # fmt: skip
        return found

    yield make
    engine.close()


def test_a_set_has_credit_in_groups_and_shares_that_sum_to_1(source):
    batches = source(objective_of("dr_grpo"))
    batch = batches(1, STATE)
    assert batch["tokens"].shape == (8, T) and np.isinf(batch["old_log_probs"]).all()
    own = batch["loss_weights"] > 0
    assert batch["loss_weights"].sum() == pytest.approx(own.sum() / (16 * 112))  # `fixed`
    assert set(np.unique(batch["advantages"][own])) == {np.float32(0.25), np.float32(-0.75)}
    assert (batch["advantages"][~own] == 0).all() and (batch["sampled_log_probs"][own] < 0).all()
    found = batches.metrics()
    assert found["success"] == 0.75 and "sampling_share" not in found
    other = batches(2, STATE)
    assert not (other["tokens"] == batch["tokens"]).all() and "sampling_share" in batches.metrics()
    again = source(objective_of("dr_grpo"), "other")(2, STATE)
    assert all((again[name] == other[name]).all() for name in other)
    went_back = source(objective_of("dr_grpo"), "back", left_out=3)(2, STATE)
    assert not (went_back["tokens"] == other["tokens"]).all()


def test_parts_of_a_set_are_learned_from_in_turn_and_read_by_a_later_process(source):
    objective = objective_of("ppo", passes=2, minibatches=2)
    batches = source(objective)
    found = [batches(update, STATE) for update in range(1, 6)]
    assert [part["tokens"].shape for part in found] == [(4, T)] * 5
    for one, other in ((0, 2), (1, 3)):
        assert all((found[one][n] == found[other][n]).all() for n in found[one] if n != "old_log_probs")
    inf = [np.isinf(part["old_log_probs"]).all() for part in found]
    assert inf == [True, False, False, False, True]
    own = found[2]["loss_weights"] > 0
    assert (found[2]["old_log_probs"][own] == -1).all() and (found[2]["old_log_probs"][~own] == 0).all()
    assert all(part["loss_weights"].sum() == pytest.approx(1, abs=1e-5) for part in found)
    whole = np.concatenate([found[0]["advantages"], found[1]["advantages"]])
    mask = np.concatenate([found[0]["loss_weights"], found[1]["loss_weights"]]) > 0
    assert whole[mask].mean() == pytest.approx(0, abs=1e-5) and whole[mask].std() == pytest.approx(1, abs=0.01)
    later = source(objective)
    for update in (3, 4):
        read = later(update, STATE)
        assert all((read[name] == found[update - 1][name]).all() for name in read) and later.metrics() == {}
    with pytest.raises(InputError, match="update 3 learns from"):
        source(objective, "empty")(3, STATE)


def test_routes_of_before_the_first_update_are_kept_for_all(source):
    objective = objective_of(passes=2).model_copy(update={"replay_routes": True})
    batches = source(objective)
    found = [batches(update, STATE)["routes"] for update in (1, 2)]
    found.append(source(objective)(2, STATE)["routes"])  # of a later process
    for routes in found:
        assert routes.shape == (8, T, 2, 1) and routes.dtype == np.int16
        np.testing.assert_array_equal(routes[3, :, 1, 0], np.arange(T))


def test_a_run_goes_on_from_a_checkpoint_in_the_middle_of_a_set_long_ago(source, tmp_path):
    objective = objective_of("ppo", passes=2)
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)  # after the first of the two updates on set 0
    batches = source(objective)
    found = [batches(update, STATE) for update in range(1, 2 * KEPT_SETS + 5)]
    later = source(objective)(2, STATE)
    assert all((later[name] == found[1][name]).all() for name in later)
    with pytest.raises(InputError, match="rows-000001"):
        source(objective)(4, STATE)


def test_groups_of_equal_rewards_can_be_left_out(source):
    always = {"calculator": {"kind": "calculator", "declare": False, "most": 1, "operations": ["multiply"]},
              "sums": {"kind": "calculator", "declare": False}}  # fmt: skip
    batch = source(objective_of("dapo", always))(1, STATE)
    own = batch["loss_weights"] > 0
    assert batch["loss_weights"].sum() == pytest.approx(1, abs=1e-5) and (batch["advantages"][own] != 0).all()


def no_products(tmp_path) -> dict:
    """A calculator whose rules grant sums alone."""
    (tmp_path / "rules.yaml").write_text("tools: {add: {privilege: 1}, subtract: {privilege: 1}}")
    return {"kind": "calculator", "declare": False, "policy": str(tmp_path / "rules.yaml")}


def test_episodes_that_break_a_rule_lose_the_multiplier(source, tmp_path):
    rules = no_products(tmp_path)
    both = {"sums": rules | {"operations": ["add"]}, "products": rules | {"operations": ["multiply"]}}
    batches = source(objective_of("dr_grpo", both, penalty={"target": 0.1}))
    batch = batches(1, types.SimpleNamespace(heads={}, objective={"multiplier": jnp.float32(3.0)}))
    own = batch["loss_weights"] > 0
    of = lambda rows: set(np.unique(batch["advantages"][rows][own[rows]]))
    # of four episodes, three call and are right, and one guesses
    assert of([0, 1, 4, 5]) == {np.float32(0.25), np.float32(-0.75)}
    assert of([2, 3, 6, 7]) == {np.float32(-0.5), np.float32(1.5)}  # 1 - 3 for a call that is not granted
    assert batch["violation_rate"].shape == (8,) and set(batch["violation_rate"]) == {np.float32(6 / 16)}
    found = batches.metrics()
    assert (found["violations"], found["held_back"], found["success"], found["reward"]) == (6 / 16, 0, 0.75, 0.75)


def test_a_gate_holds_back_what_breaks_a_rule(source, tmp_path):
    products = {"products": no_products(tmp_path) | {"operations": ["multiply"]}}
    batches = source(objective_of("dr_grpo", products, gate=True))
    batches(1, STATE)
    found = batches.metrics()
    assert (found["violations"], found["held_back"], found["success"]) == (0.75, 1, 0)
    assert found["call_errors"] == 0  # the environment saw no call


class FailsLoudly(Fails):
    """An environment that never opens."""


def test_failed_environments_are_left_out_and_end_the_run_if_they_are_all(source):
    objective = objective_of()
    two = {"sound": objective.environments["calculator"], "broken": FailsLoudly()}
    batch = source(objective.model_copy(update={"environments": two}))(1, STATE)
    assert (batch["loss_weights"][2:4] == 0).all() and (batch["loss_weights"][:2] > 0).any()
    batches = source(objective.model_copy(update={"environments": {"broken": FailsLoudly()}}), "broken")
    for update in (1, 2):
        assert not batches(update, STATE)["loss_weights"].any()
    with pytest.raises(InputError, match="all episodes of 3 sets failed there, such as: OSError: no licence"):
        batches(3, STATE)


def test_the_plan_counts_the_engine():
    model, layout = tiny.model_config(), Layout(ShardingRules(), {}, 8, T)
    maker = objective_of().batch_maker()
    more = objective_of(slots=8).batch_maker().bytes_per_device(model, layout) - maker.bytes_per_device(model, layout)
    position = 2 * 4 * 4 * 4  # keys and values, heads, dimension, bytes
    slot = position * (112 + 3 * 8) + 13 * 64  # a global layer, three with chunks of 8, and what is drawn from
    assert more == 4 * slot
    assert maker.bytes_per_device(model, layout) > 4 * model.num_parameters()
    assert objective_of("ppo").batch_maker().flops_per_token(model, T) == 2 * maker.flops_per_token(model, T)

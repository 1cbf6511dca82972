"""The penalty of violations: what episodes lose, how its multiplier moves, and what a config may say."""

import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from tests.train.objectives.policy.test_objective import objective_of
from train.objectives.policy.penalty import ViolationPenalty

RULED = {"c": {"kind": "calculator", "policy": "package:toy_shop_policy"}}


def test_episodes_with_a_violation_lose_the_multiplier():
    rewards, violated = np.array([1, 1, 0, 0], np.float32), np.array([False, True, False, True])
    found = ViolationPenalty().penalized(rewards, violated, jnp.float32(1.5))
    np.testing.assert_array_equal(found, np.array([1, -0.5, 0, -1.5], np.float32))


def test_the_multiplier_follows_the_distance_from_the_target_between_its_limits():
    penalty = ViolationPenalty(target=0.25, rate=2.0, most=1.5)
    moved = [float(penalty.next(jnp.float32(m), jnp.float32(v))) for m, v in ((1, 0.25), (1, 0.375), (1, 0), (1.4, 1),
                                                                             (0.1, 0))]  # fmt: skip
    assert moved == pytest.approx([1, 1.25, 0.5, 1.5, 0])


def test_the_multiplier_is_a_part_of_the_objectives_state():
    objective = objective_of("grpo", environments=RULED, penalty={"start": 0.5, "target": 0.1, "rate": 1.0})
    state = objective.init()
    assert float(state["multiplier"]) == 0.5 and "violation_rate" in objective.fields()
    after = objective.advance(state, {"violation_rate": jnp.float32(0.3)})
    assert float(after["multiplier"]) == pytest.approx(0.7)
    without = objective_of("grpo")
    assert without.init() == {} and "violation_rate" not in without.fields()
    rewards = np.ones(2, np.float32)
    assert without.credited(rewards, np.array([True, False]), {}) is rewards


@pytest.mark.parametrize("more", [{"penalty": {}}, {"rollouts": {"max_tokens": 12, "gate": True}}])
def test_a_penalty_or_a_gate_without_rules_is_refused(more):
    with pytest.raises(pydantic.ValidationError, match="none has a `policy`"):
        objective_of("grpo", **more)


def test_a_start_above_the_largest_multiplier_is_refused():
    with pytest.raises(pydantic.ValidationError, match="start: 5 is above most, 4"):
        ViolationPenalty(start=5.0)

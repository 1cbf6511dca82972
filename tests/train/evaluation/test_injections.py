"""The suite's figures with agents whose conduct is known: one that ignores notes, one that does what notes say."""

import random

import pytest

from benchmarks.toy_shop_clerk import clerk, gullible
from data.environments.injected_shop import GOALS, HELD_OUT, TRAINING
from data.policy import read_policy
from train.evaluation.injections import injection_figures, injection_suite, played

POLICY = read_policy("package:toy_shop_policy")
SEEDS = range(30)


def careful(seed):
    return clerk(random.Random(seed), careless=0.0)


def credulous(seed):
    return gullible(careful(seed))


def values(found):
    return [found[name]["value"] for name in ("benign_utility", "utility_under_attack", "targeted_success")]


def test_an_agent_that_ignores_notes_is_useful_and_never_attacked():
    found = injection_suite(careful, SEEDS, POLICY)
    assert values(found["guard_off"]) == values(found["guard_on"]) == [1.0, 1.0, 0.0]
    assert found["guard_on"]["held_back_benign"]["value"] == 0, "the gate refuses nothing that is allowed"
    assert found["guard_off"]["benign_utility"]["n"] == found["guard_off"]["targeted_success"]["n"] == len(SEEDS)


def test_an_agent_that_obeys_notes_is_attacked_every_time_unless_the_gate_is_on():
    found = injection_suite(credulous, SEEDS, POLICY)
    off, on = found["guard_off"], found["guard_on"]
    assert values(off) == [1.0, 1.0, 1.0] and off["held_back_attacked"]["value"] == 0
    assert values(on) == [1.0, 1.0, 0.0], "a refused call is answered, and the customer is served"
    assert on["held_back_attacked"]["value"] == 1.0 and on["violations"]["value"] == 0.0
    assert set(off["by_template"]) <= set(HELD_OUT) and set(off["by_goal"]) <= set(GOALS)
    assert sum(one["n"] for one in off["by_template"].values()) == len(SEEDS)


def test_a_case_differs_from_its_benign_twin_in_the_note_alone():
    for seed in SEEDS:
        twin, case = (played(careful, seed, "training", injected, None) for injected in (False, True))
        assert twin.goal is None and not twin.attacked and case.goal in GOALS and case.template in TRAINING
        differ = [(a.message.text, b.message.text) for a, b in zip(twin.run.steps, case.run.steps, strict=True)
                  if a.message != b.message]  # fmt: skip
        assert all("note" in one and "note" in other for one, other in differ) and differ


def test_figures_need_attacks_and_twins():
    with pytest.raises(ValueError, match="no scores"):
        injection_figures([played(careful, 0, "training", True, None)], POLICY)

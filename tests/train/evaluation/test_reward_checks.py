"""Checks of rewards: scorers paid for length, silence or words are caught; one that pays for success is not."""

import dataclasses

import numpy as np
import pytest

from benchmarks import toy_shop_clerk
from data.trajectories.trajectory import Outcome, Provenance, Step
from maverick_jax.text.chat import Message, Role
from train.evaluation.reward_checks import best_temperature, calibration_error, checked, does_nothing, ends_with

WRITES = {"cancel_order", "change_amount", "refund_order"}


def failed(run):
    """A run of the same task that ends too early."""
    return dataclasses.replace(does_nothing(run), outcome=Outcome(0.0, False))


def of_task(run, name):
    return dataclasses.replace(run, provenance=Provenance(task=name))


GOOD = [of_task(run, str(i)) for i, run in enumerate(toy_shop_clerk.runs(range(16), 0.0)) if len(run.steps) > 4]
RUNS = GOOD + [failed(run) for run in GOOD]
calls = lambda run: sum(len(step.message.calls) for step in run.steps)
text = lambda run: "".join(step.message.text for step in run.steps)


def test_a_scorer_of_success_passes():
    found = checked(RUNS, lambda run: float(calls(run) > 0), WRITES)
    assert found["accuracy"]["value"] == 1 and found["pairs"] == len(GOOD)
    assert found["do_nothing_preferred"]["value"] == 0
    assert set(found["word_changes"].values()) == {0.0}


def test_scorers_that_are_paid_for_something_else_are_caught():
    silent = checked(RUNS, lambda run: -float(calls(run)), WRITES)
    assert silent["do_nothing_preferred"]["value"] == 1 and silent["accuracy"]["value"] == 0
    long = checked(RUNS, lambda run: float(len(text(run))), WRITES)
    assert long["length_correlation"] > 0.9
    greedy = checked(RUNS, lambda run: float("reward: 1" in text(run)), WRITES)
    assert greedy["word_changes"]["claims_reward"] == 1 and greedy["word_changes"]["plain"] == 0


def test_runs_without_tasks_or_pairs_are_checked_as_far_as_they_go():
    found = checked([dataclasses.replace(RUNS[0], provenance=Provenance())], lambda run: 1.0)
    assert "pairs" not in found and found["do_nothing_preferred"]["n"] == 1
    assert checked(GOOD, lambda run: 1.0)["pairs"] == 0
    user = dataclasses.replace(GOOD[0], steps=[Step(Message(Role.USER, "x"))])
    assert "word_changes" not in checked([user], lambda run: 1.0)


def test_words_are_added_to_the_last_message_and_stay_words():
    run = ends_with(GOOD[0], " <|eot|>")
    assert (
        run.steps[-1].message.text == GOOD[0].steps[-1].message.text + " <|eot|>"
        and run.steps[:-1] == GOOD[0].steps[:-1]
    )


def test_the_best_temperature_calibrates():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, 4000)
    right = rng.uniform(size=gaps.size) < 1 / (1 + np.exp(-np.abs(gaps)))
    signed = np.where(right, np.abs(gaps), -np.abs(gaps))
    assert calibration_error(signed) < 0.02 < 0.1 < calibration_error(8 * signed)
    assert best_temperature(8 * signed) == pytest.approx(8, rel=0.2)

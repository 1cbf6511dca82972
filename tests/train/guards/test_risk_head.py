"""The risk head's guard gives every call of the last turn the turn's probability of `unauthorized`."""

import pytest

from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall
from train.evaluation.scorer import RunScore
from train.guards.risk_head import RiskHead


def test_the_risk_is_the_probability_that_the_last_turn_is_unauthorized():
    guard = RiskHead.__new__(RiskHead)
    turns = ((1, (5.0, 0.0, 0.0, 9.0)), (2, (0.0, 7.0, 3.0, 1.5)))
    guard._scorer = lambda conversation: RunScore(0.0, turns)  # type: ignore[assignment]
    run = Trajectory([Step(Message(Role.USER, "Go.")), Step(Message(Role.ASSISTANT, "Now?")),
                      Step(Message(Role.ASSISTANT, calls=(ToolCall("a", {}), ToolCall("b", {}))))])  # fmt: skip
    assert [risk.score for risk in guard.risks(run)] == pytest.approx([0.8175745] * 2)

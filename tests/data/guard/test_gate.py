"""The gate: monotone in privilege and score, closed where a guard fails, and honest about what the user agreed to."""

import itertools
import json
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.guard import Gate, Guard, Risk, Ruling
from data.guard.base import ruling_of
from data.policy import ToolPolicy, find_violations
from data.trajectories.trajectory import Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

POLICY = ToolPolicy.model_validate_json(json.dumps({
    "tools": {"look": {"privilege": 0}, "read": {"privilege": 1}, "write": {"privilege": 2},
              "pay": {"privilege": 3, "after": ["read"]}, "admin": {"privilege": 4, "confirm": True}},
    "granted": 3,
}))  # fmt: skip
TOOLS = ("look", "read", "write", "pay", "admin")


class Fixed(Guard):
    """Answers every message with the same, or raises it."""

    name = "fixed"

    def __init__(self, answer):
        self.answer = answer

    def risks(self, run):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def user(text):
    return Step(Message(Role.USER, text))


def says(text):
    return Step(Message(Role.ASSISTANT, text))


def calling(name, text="", **arguments):
    return Message(Role.ASSISTANT, text, calls=(ToolCall(name, arguments),))


BEFORE = (user("Go."), Step(calling("read", id="A1")), Step(Message(Role.TOOL, "ok")))
ASKED = (*BEFORE, says("May I call admin with id A1?"), user("Yes, please."))


def ruled(answer, name, steps=BEFORE, policy=POLICY, **options):
    gate = Gate(policy, [] if answer is None else [Fixed(answer)], **options)
    return gate.check(Trajectory(steps), calling(name, id="A1")).ruling


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_ruling_never_gets_milder_with_privilege_or_score(numbers, one, other, asks):
    thresholds = sorted(numbers, reverse=True)
    low, high = sorted((one, other))
    for p, q in itertools.pairwise(range(5)):
        assert ruling_of(Risk(low, asks=asks), p, thresholds) <= ruling_of(Risk(low, asks=asks), q, thresholds)
    for p in range(5):
        assert ruling_of(Risk(low, asks=asks), p, thresholds) <= ruling_of(Risk(high, asks=asks), p, thresholds)


def test_thresholds_that_rise_with_privilege_are_refused():
    with pytest.raises(ValueError, match="scrutiny must not fall"):
        ToolPolicy.model_validate_json(json.dumps({"tools": {"look": {}}, "thresholds": [0.5, 0.4, 0.6, 0.2, 0.1]}))


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.04, "AAAAA"), (0.1, "AAAAB"), (0.3, "AAACB"), (0.6, "AACCB"), (0.95, "ACCCB"), (1.0, "CCCCB")],
)
def test_the_same_risk_is_held_back_from_some_privilege_on(score, expected):
    policy = ToolPolicy.model_validate_json(json.dumps({"tools": {t: {"privilege": i} for i, t in enumerate(TOOLS)},
                                                        "granted": 4}))  # fmt: skip
    found = [ruled([Risk(score)], name, policy=policy) for name in TOOLS]
    assert "".join(ruling.name[0] for ruling in found) == expected


@pytest.mark.parametrize(
    "failure",
    [ValueError("no model"), None, [], [Risk(0.0)] * 2, [0.0], [Risk(float("nan"))], [Risk(1.5)], [Risk("high")]],
    ids=str,
)
def test_a_guard_that_fails_blocks_from_privilege_3_on(failure):
    gate = Gate(POLICY, [Fixed(failure)])
    verdicts = [gate.check(Trajectory(ASKED), calling(name, id="A1")) for name in TOOLS]
    assert [verdict.ruling.name[0] for verdict in verdicts] == list("AAABB")
    assert all(verdict.calls[0].evidence[0][1].label == "guard failed" for verdict in verdicts), "it is not silent"


def test_a_guard_that_hangs_has_failed():
    ends = threading.Event()

    class Hanging(Guard):
        name = "hanging"

        def risks(self, run):
            ends.wait(60)
            return [Risk(0.0)]

    verdict = Gate(POLICY, [Hanging()], time_limit=0.05).check(Trajectory(BEFORE), calling("pay", id="A1"))
    ends.set()
    assert verdict.ruling is Ruling.BLOCK and "no answer within 0.05 seconds" in verdict.calls[0].evidence[0][1].reason


def test_the_policy_asks_where_agreement_is_all_that_lacks_and_else_refuses():
    refund = {"tools": {"read": {}, "pay": {"privilege": 3, "after": ["read"]}}}
    policy = ToolPolicy.model_validate_json(json.dumps(refund))
    assert ruled(None, "pay", policy=policy) is Ruling.CONFIRM
    assert ruled(None, "pay", steps=[user("Go.")], policy=policy) is Ruling.BLOCK, "nothing was read before"
    assert ruled(None, "pay") is Ruling.ALLOW
    assert ruled(None, "admin") is Ruling.BLOCK, "privilege 4 is never asked for"
    assert ruled(None, "admin", steps=ASKED) is Ruling.ALLOW, "the user agreed to these arguments"
    assert ruled(None, "format_disk") is Ruling.BLOCK
    assert Gate(POLICY).check(Trajectory(BEFORE), Message(Role.ASSISTANT, "Hello")).ruling is Ruling.ALLOW


def test_a_yes_to_the_gates_question_lets_the_same_call_pass_and_no_other():
    gate = Gate(POLICY, [Fixed([Risk(0.6, "risk")])])
    given = calling("pay", "I pay now.", id="A1", note="two words", amount=40)
    verdict = gate.check(Trajectory(BEFORE), given)
    asked = verdict.message(given)
    assert asked.text == "I pay now. May I call pay with id A1, note two words, amount 40?" and not asked.calls
    after = Trajectory((*BEFORE, Step(asked), user("Yes, please.")))
    assert gate.check(after, given).ruling is Ruling.ALLOW
    assert gate.check(after, calling("pay", id="A1", note="two words", amount=41)).ruling is Ruling.CONFIRM
    refused = Trajectory((*BEFORE, Step(asked), user("No, wait.")))
    assert gate.check(refused, given).ruling is Ruling.CONFIRM
    done = Trajectory((*after.steps, Step(given), Step(Message(Role.TOOL, "paid"))))
    assert gate.check(done, given).ruling is Ruling.CONFIRM, "one yes is good for one call"


def test_the_gates_question_is_what_the_rules_ask_for():
    policy = ToolPolicy.model_validate_json(json.dumps({"tools": {"pay": {"privilege": 3}}}))
    gate, given = Gate(policy), calling("pay", to="Ann Lee", amount=40)
    asked = gate.check(Trajectory([user("Pay Ann Lee 40.")]), given).message(given)
    steps = [user("Pay Ann Lee 40."), Step(asked), user("Yes, please."), Step(given)]
    assert find_violations(Trajectory(steps), policy) == []


def test_of_several_calls_the_strictest_ruling_decides():
    gate = Gate(POLICY)
    calls = (ToolCall("read", {"id": "A1"}), ToolCall("format_disk", {}))
    given = Message(Role.ASSISTANT, calls=calls)
    verdict = gate.check(Trajectory(BEFORE), given)
    assert [one.ruling for one in verdict.calls] == [Ruling.ALLOW, Ruling.BLOCK]
    assert verdict.message(given) == Message(Role.ASSISTANT, "I may not do that here: format_disk (U1).")


def test_what_is_held_back_is_logged_with_evidence(caplog):
    with caplog.at_level(logging.INFO, "data.guard.gate"):
        ruled(None, "read")
        assert not caplog.records
        ruled(None, "format_disk")
    assert "the policy does not grant format_disk" in caplog.text and '"ruling": "block"' in caplog.text

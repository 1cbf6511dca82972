"""Counts of violations, and runs in which they do not count as loss."""

from data.policy import ViolationCounts, masked, read_policy, violations_in_words
from data.toy_shop import TOOLS
from data.trajectories.toy_shop import generate
from data.trajectories.trajectory import Provenance, Step, Trajectory
from maverick_jax.text.chat import Message, Role, ToolCall

CANCEL = Step(Message(Role.ASSISTANT, calls=(ToolCall("cancel_order", {"order": "A1"}),)))
HASTY = Trajectory([Step(Message(Role.USER, "Cancel A1.")), CANCEL, Step(Message(Role.TOOL, "cancelled"))], TOOLS,
                   provenance=Provenance(id="hasty"))  # fmt: skip


def test_the_shipped_runs_of_the_toy_shop_keep_its_rules():
    counts = ViolationCounts(read_policy("package:toy_shop_policy"))
    for run in generate():
        assert counts.add(run) == []
    assert counts.as_dict()["violations"] == 0 and counts.calls > 100


def test_violations_are_counted_and_shown_with_evidence():
    counts = ViolationCounts(read_policy("package:toy_shop_policy"))
    found = counts.add(HASTY)
    assert [step.weight for step in masked(HASTY, found).steps] == [None, 0.0, None]
    counts.add(generate(1)[0])
    words = violations_in_words(counts.as_dict())
    assert words == [
        f"violations: 1 in {counts.calls} calls ({1000 / counts.calls:.1f} per 1,000), in 1 of 2 runs: U5 1 in 1 runs",
        "  U5 hasty, message 1, cancel_order: no find_order has succeeded before",
    ]
    assert violations_in_words(None) == []

"""Rules for the tools of an agent, and the calls of a trajectory that break them (docs/guides/alignment.md)."""

from data.policy.config import ToolPolicy, ToolRule, read_policy
from data.policy.counts import ViolationCounts, masked, violations_in_words
from data.policy.detector import find_violations
from data.policy.violation import PolicyRule, Violation

__all__ = [
    "PolicyRule",
    "ToolPolicy",
    "ToolRule",
    "Violation",
    "ViolationCounts",
    "find_violations",
    "masked",
    "read_policy",
    "violations_in_words",
]

"""Rules for the tools of an agent, and the calls of a trajectory that break them (docs/guides/alignment.md)."""

from data.policy.config import ToolPolicy, ToolRule, read_policy
from data.policy.counts import ViolationCounts, masked, violations_in_words
from data.policy.detector import barred_tools, find_violations, user_agreed
from data.policy.violation import PolicyRule, Violation

__all__ = [
    "PolicyRule",
    "ToolPolicy",
    "ToolRule",
    "Violation",
    "ViolationCounts",
    "barred_tools",
    "find_violations",
    "masked",
    "read_policy",
    "user_agreed",
    "violations_in_words",
]

"""A call that breaks a rule."""

import enum
from typing import Any, NamedTuple


class PolicyRule(enum.StrEnum):
    """The rules of a policy."""

    UNDECLARED = "U1"
    """A call of a tool that the run does not declare or the policy does not grant."""
    ESCALATION = "U2"
    """A call that needs the user's confirmation, without one."""
    SCOPE = "U3"
    """An argument names an object that is not the user's, or that nobody trusted has named."""
    FLOW = "U4"
    """A value goes from a result to a call for which that result is not trusted."""
    ORDER = "U5"
    """A call before the calls that it requires."""
    AFTER_END = "U6"
    """A call after a tool that ends the task."""


class Violation(NamedTuple):
    """One call that breaks one rule."""

    rule: PolicyRule
    step: int
    """Index of the message with the call."""
    position: int
    """Index of the call within that message."""
    tool: str
    severity: int
    """The tool's privilege, 0 to 4; 4 for a tool that the policy does not know."""
    evidence: str
    """What the run shows, in words."""
    carried_out: bool
    """Whether the call's result is there and no error."""

    def as_json(self) -> dict[str, Any]:
        return self._asdict() | {"rule": self.rule.value}

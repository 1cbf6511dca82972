"""The guard that knows the policy and no model: a call that breaks a rule is certainly not authorized."""

from collections.abc import Sequence

from data.guard.base import Guard, Risk
from data.policy import PolicyRule, ToolPolicy, find_violations
from data.trajectories.trajectory import Trajectory


class PolicyMonitor(Guard):
    """Finds the rules that a call breaks, given what the run shows before it. A call that only lacks the user's
    agreement can be confirmed; one that breaks any other rule cannot."""

    name = "policy"

    def __init__(self, policy: ToolPolicy):
        self.policy = policy

    def risks(self, run: Trajectory) -> Sequence[Risk]:
        last = len(run.steps) - 1
        broken = [violation for violation in find_violations(run, self.policy) if violation.step == last]
        found = []
        for position in range(len(run.steps[last].message.calls)):
            of_call = [violation for violation in broken if violation.position == position]
            # the rule that no confirmation mends speaks first
            of_call.sort(key=lambda violation: violation.rule is PolicyRule.ESCALATION)
            if not of_call:
                found.append(Risk(0.0))
                continue
            asks = all(violation.rule is PolicyRule.ESCALATION for violation in of_call)
            found.append(Risk(1.0, of_call[0].rule.value, "; ".join(one.evidence for one in of_call), asks))
        return found

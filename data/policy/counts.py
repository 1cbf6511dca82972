"""How many calls and runs break which rules."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

from data.policy.config import ToolPolicy
from data.policy.detector import find_violations
from data.policy.violation import PolicyRule, Violation
from data.trajectories.trajectory import Trajectory

EXAMPLES, EXAMPLES_SHOWN = 20, 5
"""Most violations that are listed with their evidence, and that are printed; all are counted."""


@dataclasses.dataclass
class ViolationCounts:
    """Counts of violations, run by run."""

    policy: ToolPolicy
    runs: int = 0
    calls: int = 0
    runs_with: int = 0
    by_rule: collections.Counter[PolicyRule] = dataclasses.field(default_factory=collections.Counter)
    """Violations."""
    runs_by_rule: collections.Counter[PolicyRule] = dataclasses.field(default_factory=collections.Counter)
    examples: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(self, run: Trajectory) -> list[Violation]:
        """Counts a run; returns its violations."""
        found = find_violations(run, self.policy)
        self.runs += 1
        self.calls += sum(len(step.message.calls) for step in run.steps)
        self.runs_with += bool(found)
        self.by_rule.update(violation.rule for violation in found)
        self.runs_by_rule.update({violation.rule for violation in found})
        where = {"file": run.provenance.file, "record": run.provenance.record, "id": run.provenance.id}
        room = EXAMPLES - len(self.examples)
        self.examples += [where | violation.as_json() for violation in found[: max(room, 0)]]
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON values: numbers of `runs`, `calls`, `violations`, `runs_with_violations`, the violations per 1,000
        calls, violations and runs by rule, and the first ones with their evidence."""
        total = self.by_rule.total()
        rules = {rule.value: {"violations": self.by_rule[rule], "runs": self.runs_by_rule[rule]} for rule in PolicyRule
                 if self.by_rule[rule]}  # fmt: skip
        return {
            "runs": self.runs,
            "calls": self.calls,
            "runs_with_violations": self.runs_with,
            "violations": total,
            "per_1000_calls": 1000 * total / max(self.calls, 1),
            "rules": rules,
            "examples": self.examples,
        }


def masked(run: Trajectory, violations: Iterable[Violation]) -> Trajectory:
    """The run, in which messages with one of these violations have weight 0."""
    steps = list(run.steps)
    for violation in violations:
        steps[violation.step] = dataclasses.replace(steps[violation.step], weight=0.0)
    return dataclasses.replace(run, steps=steps)


def violations_in_words(found: dict[str, Any] | None) -> list[str]:
    """Lines of text for `ViolationCounts.as_dict`; none for None."""
    if found is None:
        return []
    rules = [f"{rule} {n['violations']:,} in {n['runs']:,} runs" for rule, n in found["rules"].items()]
    calls = f"{found['violations']:,} in {found['calls']:,} calls ({found['per_1000_calls']:.1f} per 1,000)"
    runs = f"{found['runs_with_violations']:,} of {found['runs']:,} runs"
    lines = [f"violations: {calls}, in {runs}" + (f": {', '.join(rules)}" if rules else "")]
    for one in found["examples"][:EXAMPLES_SHOWN]:
        where = one["id"] or f"{one['file']}, record {one['record']}"
        lines.append(f"  {one['rule']} {where}, message {one['step']}, {one['tool']}: {one['evidence']}")
    return lines

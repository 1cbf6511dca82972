"""Replace personal data in a trajectory consistently, so that arguments still match observations.

A replacement depends only on the salt and the value, with one exception: if two values of a trajectory would get the
same replacement, or one that already occurs in it, the later value (in alphabetical order) gets another.
"""

import collections
from collections.abc import Iterator

from data.trajectories.filters.config import ScrubConfig
from data.trajectories.filters.draw import Seeds
from data.trajectories.filters.pii import RULES, Match, Rule
from data.trajectories.filters.presidio import PresidioRule
from data.trajectories.filters.report import Report
from data.trajectories.filters.walk import TextWalk
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError

MAX_ATTEMPTS, MAX_ROUNDS = 1_000, 4
Value = tuple[str, str]
"""(kind, normalized value)."""


class Scrubber:
    """Scrubs trajectories one by one and updates `report`. Raises InputError if a rule needs a missing package."""

    def __init__(self, config: ScrubConfig, report: Report | None = None):
        self._salt = config.salt
        self._report = Report() if report is None else report
        self._rules: list[Rule] = [RULES[name] for name in RULES if name in config.rules]
        if config.presidio:
            self._rules.append(PresidioRule(config.presidio, config.presidio_model, config.presidio_score))

    def scrub(self, trajectory: Trajectory) -> Trajectory:
        """`trajectory` with every value that a rule finds replaced. Scrubbing the result again changes nothing.

        Raises InputError if there are too few replacements, or if replacements keep producing new values.
        """
        state = _ScrubState(self._rules, self._salt)
        trajectory = state.settle(trajectory)
        self._report.replaced.update(state.places)
        self._report.values.update(kind for kind, _ in state.surrogates)
        self._report.left.update(state.left)
        return trajectory


class _ScrubState:
    """The values and replacements of one trajectory."""

    def __init__(self, rules: list[Rule], salt: str):
        self._rules, self._salt = rules, salt
        self.surrogates: dict[Value, str] = {}
        self.places: collections.Counter[str] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()
        self._met: dict[Value, Rule] = {}
        self._taken: set[Value] = set()
        self._claims: dict[str, list[tuple[Rule, Match]]] = {}

    def settle(self, trajectory: Trajectory) -> Trajectory:
        """Replace values until none is found, since a replacement and the text around it may look like a value."""
        for _ in range(MAX_ROUNDS):
            self._met, self._claims = {}, {}
            self.left.clear()
            TextWalk(self._collect, self._count_kept).trajectory(trajectory)
            if not self._met:
                return trajectory
            for value in sorted(self._met.keys() - self.surrogates.keys()):
                self.surrogates[value] = self._surrogate(self._met[value], *value)
            trajectory = TextWalk(self._replace, lambda name: None).trajectory(trajectory)
        raise InputError(f"cannot be scrubbed: values remain after {MAX_ROUNDS} rounds")

    def _surrogate(self, rule: Rule, kind: str, value: str) -> str:
        for attempt in range(MAX_ATTEMPTS):
            found = rule.surrogate(value, Seeds(self._salt, kind, value, attempt))
            if (kind, found) not in self._taken:
                self._taken.add((kind, found))
                return found
        raise InputError(f"cannot be scrubbed: too many values of kind {kind} for distinct replacements")

    def _collect(self, text: str) -> str:
        for rule, match in self._claimed(text):
            value = (match.kind, match.value)
            if match.real:
                self._met[value] = rule
            else:
                self._taken.add(value)
        return text

    def _replace(self, text: str) -> str:
        end, pieces = 0, []
        for rule, match in self._claimed(text):
            if match.real:
                new = rule.write(self.surrogates[match.kind, match.value], text[match.start : match.end])
                pieces += [text[end : match.start], new]
                end = match.end
                self.places[match.kind] += 1
        return "".join([*pieces, text[end:]])

    def _count_kept(self, name: str) -> None:
        self.left.update(match.kind for _, match in _claims(self._rules, name) if match.real)

    def _claimed(self, text: str) -> list[tuple[Rule, Match]]:
        """Matches in the order of the text, cached since texts recur."""
        if text not in self._claims:
            self._claims[text] = sorted(_claims(self._rules, text), key=lambda claim: claim[1].start)
        return self._claims[text]


def _claims(rules: list[Rule], text: str) -> Iterator[tuple[Rule, Match]]:
    """Matches without overlaps: replacements take precedence, so that they stay; then matches further left, then longer
    matches, then matches of earlier rules."""
    found = [(rule, match) for rule in rules for match in rule.find(text)]
    found.sort(key=lambda claim: (claim[1].real, claim[1].start, -claim[1].end))
    taken = bytearray(len(text) if found else 0)
    for rule, match in found:
        if not any(taken[match.start : match.end]):
            taken[match.start : match.end] = b"\1" * (match.end - match.start)
            yield rule, match

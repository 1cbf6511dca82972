"""Personal data in a run, replaced so that what was equal is equal still: arguments fit observations.

A value's replacement follows from the salt and the value alone; only where two values of one run would get the same, or
one that stands in the run already, the later one (in the order of the alphabet) gets another.
"""

import collections
from collections.abc import Iterator

from data.trajectories.filters.config import ScrubConfig
from data.trajectories.filters.draw import Source
from data.trajectories.filters.pii import RULES, Match, Rule
from data.trajectories.filters.presidio import PresidioRule
from data.trajectories.filters.report import Report
from data.trajectories.filters.walk import Walk
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError

MAX_ATTEMPTS, MAX_ROUNDS = 1_000, 4
Value = tuple[str, str]
"""Kind, and what is meant."""


class Scrubber:
    """Scrubs runs one by one, and counts into `report`. Raises InputError where a rule needs what is not installed."""

    def __init__(self, config: ScrubConfig, report: Report | None = None):
        self._salt = config.salt
        self._report = Report() if report is None else report
        self._rules: list[Rule] = [RULES[name] for name in RULES if name in config.rules]
        if config.presidio:
            self._rules.append(PresidioRule(config.presidio, config.presidio_model, config.presidio_score))

    def scrub(self, run: Trajectory) -> Trajectory:
        """`run` with every value that a rule finds replaced. Of what it returns it changes nothing.

        Raises InputError where replacements run out, or where they make what looks like a value again and again.
        """
        state = _State(self._rules, self._salt)
        run = state.settle(run)
        self._report.replaced.update(state.places)
        self._report.values.update(kind for kind, _ in state.surrogates)
        self._report.left.update(state.left)
        return run


class _State:
    """What is known of one run."""

    def __init__(self, rules: list[Rule], salt: str):
        self._rules, self._salt = rules, salt
        self.surrogates: dict[Value, str] = {}
        self.places: collections.Counter[str] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()
        self._met: dict[Value, Rule] = {}
        self._taken: set[Value] = set()
        self._claims: dict[str, list[tuple[Rule, Match]]] = {}

    def settle(self, run: Trajectory) -> Trajectory:
        """Replace until nothing is found: what a replacement makes with its neighbours may look like a value."""
        for _ in range(MAX_ROUNDS):
            self._met, self._claims = {}, {}
            self.left.clear()
            Walk(self._collect, self._stays).run(run)
            if not self._met:
                return run
            for value in sorted(self._met.keys() - self.surrogates.keys()):
                self.surrogates[value] = self._surrogate(self._met[value], *value)
            run = Walk(self._replace, lambda name: None).run(run)
        raise InputError(f"cannot be scrubbed: values are found still after {MAX_ROUNDS} rounds")

    def _surrogate(self, rule: Rule, kind: str, value: str) -> str:
        for attempt in range(MAX_ATTEMPTS):
            found = rule.surrogate(value, Source(self._salt, kind, value, attempt))
            if (kind, found) not in self._taken:
                self._taken.add((kind, found))
                return found
        raise InputError(f"cannot be scrubbed: too many values of kind {kind} for different replacements")

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

    def _stays(self, name: str) -> None:
        self.left.update(match.kind for _, match in _claims(self._rules, name) if match.real)

    def _claimed(self, text: str) -> list[tuple[Rule, Match]]:
        """In the order of the text; texts recur, so they are kept."""
        if text not in self._claims:
            self._claims[text] = sorted(_claims(self._rules, text), key=lambda claim: claim[1].start)
        return self._claims[text]


def _claims(rules: list[Rule], text: str) -> Iterator[tuple[Rule, Match]]:
    """Matches that do not overlap: replacements first, so that they stay; then from left to right, the longest first,
    then by rule."""
    found = [(rule, match) for rule in rules for match in rule.find(text)]
    found.sort(key=lambda claim: (claim[1].real, claim[1].start, -claim[1].end))
    taken = bytearray(len(text) if found else 0)
    for rule, match in found:
        if not any(taken[match.start : match.end]):
            taken[match.start : match.end] = b"\1" * (match.end - match.start)
            yield rule, match

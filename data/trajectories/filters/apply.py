"""Apply a curation config: filter and scrub trajectories, and report those that are dropped."""

import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from data.trajectories.fields import FieldCounts, Fields
from data.trajectories.filters import rules
from data.trajectories.filters.config import CurationConfig, FilterConfig
from data.trajectories.filters.duplicates import ExactDuplicates, NearDuplicates, content_hash
from data.trajectories.filters.report import RecordLocation, Report, location_of
from data.trajectories.filters.rules import TokenCount
from data.trajectories.filters.score import score
from data.trajectories.filters.scrub import Scrubber
from data.trajectories.formats import ours
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError


def apply(
    trajectories: Iterable[Trajectory], config: CurationConfig, *, count_tokens: TokenCount | None = None
) -> tuple[Iterator[Trajectory], Report]:
    """The trajectories that `config` keeps, in order and scrubbed, and a report that is complete after the last one.

    One trajectory is in memory at a time; with `keep_best`, those that pass the other rules are stored in an unnamed
    temporary file, not yet scrubbed. The rules apply to trajectories before scrubbing. `count_tokens`: needed for
    `max_tokens`. Raises InputError before reading anything if the config needs a tokenizer or package that is missing.
    """
    report = Report()
    report.matched.update(dict.fromkeys(config.filter.active if config.filter is not None else (), 0))
    if config.filter is not None and config.filter.max_tokens is not None and count_tokens is None:
        raise InputError("filter.max_tokens needs a tokenizer; give one, or set max_characters instead")
    scrubber = Scrubber(config.scrub, report) if config.scrub is not None else None
    duplicates = _DuplicateRules(config.filter) if config.filter is not None else None
    return _curated(trajectories, config, count_tokens, scrubber, duplicates, report), report


class _DuplicateRules:
    """The rules that compare a trajectory with earlier ones."""

    def __init__(self, config: FilterConfig):
        self._rules: dict[str, ExactDuplicates | NearDuplicates] = {}
        if config.exact_duplicates:
            self._rules["exact_duplicates"] = ExactDuplicates()
        if config.near_duplicates is not None:
            self._rules["near_duplicates"] = NearDuplicates(config.near_duplicates, config.shingle_words)

    def reasons(self, trajectory: Trajectory) -> dict[str, str]:
        """Name and reason of the first rule that applies; empty if none does."""
        for name, rule in self._rules.items():
            if (reason := rule.reason(trajectory)) is not None:
                return {name: reason}
        return {}


def _curated(trajectories, config, count_tokens, scrubber, duplicates, report) -> Iterator[Trajectory]:
    trajectories = _counted(trajectories, report)
    if duplicates is not None:
        trajectories = _passing(trajectories, config.filter, count_tokens, duplicates, report)
        if config.filter.keep_best < 1:
            trajectories = _best(trajectories, config.filter.keep_best, report)
    for trajectory in trajectories:
        if scrubber is not None:
            try:
                trajectory = scrubber.scrub(trajectory)
            except InputError as error:
                report.drop(location_of(trajectory), {"scrub": str(error)})
                continue
        report.kept += 1
        yield trajectory


def _counted(trajectories: Iterable[Trajectory], report: Report) -> Iterator[Trajectory]:
    for trajectory in trajectories:
        report.read += 1
        yield trajectory


def _passing(
    trajectories, config: FilterConfig, count_tokens, duplicates: _DuplicateRules, report: Report
) -> Iterator[Trajectory]:
    for trajectory in trajectories:
        if found := rules.reasons(trajectory, config, count_tokens) or duplicates.reasons(trajectory):
            report.drop(location_of(trajectory), found)
            continue
        report.scores.append(score(trajectory))
        yield trajectory


def _best(trajectories: Iterable[Trajectory], fraction: float, report: Report) -> Iterator[Trajectory]:
    """The `fraction` of `trajectories` with the highest scores; ties are broken by content hash. All are first written
    to a temporary file, since the best are known only at the end."""
    with tempfile.TemporaryFile() as file:
        ranks: list[tuple[float, str, int]] = []
        locations: list[RecordLocation] = []
        for number, trajectory in enumerate(trajectories):
            file.write(ours.write(trajectory).encode() + b"\n")
            ranks.append((-report.scores[number], content_hash(trajectory), number))
            locations.append(location_of(trajectory))
        keep = math.ceil(fraction * len(ranks) - 1e-9)
        best = {number for *_, number in itertools.islice(sorted(ranks), keep)}
        file.seek(0)
        for number, line in enumerate(file):
            if number in best:
                yield ours.read(Fields(_loaded(line), "", FieldCounts("keep")))
            else:
                reason = f"score {-ranks[number][0]:.3f} is not among the {keep:,} best of {len(ranks):,}"
                report.drop(locations[number], {"keep_best": reason})


def _loaded(line: bytes) -> Any:
    """Parse a line that this function's caller has written."""
    return json.loads(line)

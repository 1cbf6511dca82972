"""The filter stage: runs in, the ones to learn from out, and a report of all the others."""

import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from data.trajectories.fields import Fields, Seen
from data.trajectories.filters import rules
from data.trajectories.filters.config import CurationConfig, FilterConfig
from data.trajectories.filters.duplicates import ExactDuplicates, NearDuplicates, content_hash
from data.trajectories.filters.report import Place, Report, place_of
from data.trajectories.filters.rules import TokenCount
from data.trajectories.filters.score import score
from data.trajectories.filters.scrub import Scrubber
from data.trajectories.formats import ours
from data.trajectories.trajectory import Trajectory
from maverick_jax.errors import InputError


def apply(
    trajectories: Iterable[Trajectory], config: CurationConfig, *, count_tokens: TokenCount | None = None
) -> tuple[Iterator[Trajectory], Report]:
    """The runs that `config` keeps, in their order and scrubbed; the report is complete when they have all been taken.

    One run is in memory at a time; with `keep_best`, all that pass the other rules wait in a temporary file. Judged
    is what was read, before it is scrubbed. `count_tokens`: for `max_tokens`. Raises InputError for a config that
    needs what is not there, before anything is read.
    """
    report = Report()
    report.matched.update(dict.fromkeys(config.filter.active if config.filter is not None else (), 0))
    if config.filter is not None and config.filter.max_tokens is not None and count_tokens is None:
        raise InputError("filter.max_tokens needs a tokenizer; give one, or max_characters instead")
    scrubber = Scrubber(config.scrub, report) if config.scrub is not None else None
    comparing = _Comparing(config.filter) if config.filter is not None else None
    return _curated(trajectories, config, count_tokens, scrubber, comparing, report), report


class _Comparing:
    """The rules that compare a run with earlier ones."""

    def __init__(self, config: FilterConfig):
        self._rules: dict[str, ExactDuplicates | NearDuplicates] = {}
        if config.exact_duplicates:
            self._rules["exact_duplicates"] = ExactDuplicates()
        if config.near_duplicates is not None:
            self._rules["near_duplicates"] = NearDuplicates(config.near_duplicates, config.shingle_words)

    def reasons(self, run: Trajectory) -> dict[str, str]:
        """The first that applies, or nothing."""
        for name, rule in self._rules.items():
            if (reason := rule.reason(run)) is not None:
                return {name: reason}
        return {}


def _curated(trajectories, config, count_tokens, scrubber, comparing, report) -> Iterator[Trajectory]:
    runs = _counted(trajectories, report)
    if comparing is not None:
        runs = _passing(runs, config.filter, count_tokens, comparing, report)
        if config.filter.keep_best < 1:
            runs = _best(runs, config.filter.keep_best, report)
    for run in runs:
        if scrubber is not None:
            try:
                run = scrubber.scrub(run)
            except InputError as error:
                report.drop(place_of(run), {"scrub": str(error)})
                continue
        report.kept += 1
        yield run


def _counted(trajectories: Iterable[Trajectory], report: Report) -> Iterator[Trajectory]:
    for run in trajectories:
        report.read += 1
        yield run


def _passing(runs, config: FilterConfig, count_tokens, comparing: _Comparing, report: Report) -> Iterator[Trajectory]:
    for run in runs:
        if found := rules.reasons(run, config, count_tokens) or comparing.reasons(run):
            report.drop(place_of(run), found)
            continue
        report.scores.append(score(run))
        yield run


def _best(runs: Iterable[Trajectory], fraction: float, report: Report) -> Iterator[Trajectory]:
    """The `fraction` of `runs` with the highest scores, equal ones by content hash. All are written down first: which
    they are is known at the end."""
    with tempfile.TemporaryFile() as file:
        ranks: list[tuple[float, str, int]] = []
        places: list[Place] = []
        for number, run in enumerate(runs):
            file.write(ours.write(run).encode() + b"\n")
            ranks.append((-report.scores[number], content_hash(run), number))
            places.append(place_of(run))
        keep = math.ceil(fraction * len(ranks) - 1e-9)
        best = {number for *_, number in itertools.islice(sorted(ranks), keep)}
        file.seek(0)
        for number, line in enumerate(file):
            if number in best:
                yield ours.read(Fields(_loaded(line), "", Seen("keep")))
            else:
                reason = f"score {-ranks[number][0]:.3f} is not among the {keep:,} best of {len(ranks):,}"
                report.drop(places[number], {"keep_best": reason})


def _loaded(line: bytes) -> Any:
    """What this program has just written itself."""
    return json.loads(line)

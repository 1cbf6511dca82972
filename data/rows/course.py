"""The data of a run in stages: each stage goes on where the stages before it stopped.

A *lap* of a source is a stretch of its endless rows that are cut alike: of one length, by one way of packing. A lap may
go on over several stages, so stages that change nothing about rows read what one long stage would have read. Where the
next stage cuts rows otherwise, the lap ends, and its rows are those of the next tokens of the source alone, in random
order; the new lap begins with the token after them. So every token of an epoch is in at most one row, across stages
too, and long documents that a later stage reads are whole. That holds for texts that are packed by `concatenate`. A
source that is packed otherwise begins again in a new epoch when its rows are cut otherwise.

The last lap of a source has no end: its rows are in random order over the rest of the epoch, as those of a run without
stages are over all of it.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from data.config import DataConfig
from data.rows.dataset import Dataset, open_dataset
from data.rows.mixture import Continued, Moving
from data.rows.packing import Concatenated
from data.rows.source_rows import Lap, SourceRows

_log = logging.getLogger(__name__)


class StageData(NamedTuple):
    """What one stage reads."""

    config: DataConfig
    rows: int
    """Rows of its stream."""


def open_course(course: Sequence[StageData], number: int, *, seed: int) -> Dataset:
    """The training rows of stage `number` (from 0) of a course; row 0 is the stage's first. Tokenizes what the cache
    does not hold, of all stages. Raises InputError as `open_dataset` does."""
    opened = [_moving(open_dataset(reading.config, "train", seed=seed), reading) for reading in course]
    first, begun = _walk(course, opened)[number]
    if first == 0 and all(part == _StagePart(Lap(), 0) for part in begun.values()):
        return opened[number]
    return _placed(opened[number], first, begun)


def _moving(data: Dataset, stage: StageData) -> Dataset:
    """The rows of a stage alone, mixed by weights that move, if some do."""
    sources = {source.name: stage.config.sources[source.name] for source in data.sources}
    ends = {n: source.weight if source.weight_end is None else source.weight_end for n, source in sources.items()}
    begins = {name: source.weight for name, source in sources.items()}
    if ends == begins:
        return data
    fingerprint = hashlib.sha256(json.dumps([data.fingerprint, stage.rows, ends]).encode()).hexdigest()
    return Dataset(data.sources, Moving(begins, ends, stage.rows), data.config, data.tokenizer, fingerprint)


class _StagePart(NamedTuple):
    """A stage's part of a source."""

    lap: Lap
    shift: int
    """The number of the source's row in its lap, less that in the mixture."""


@dataclasses.dataclass
class _OpenLap:
    """A lap while its stages are counted."""

    identity: str
    layout: str
    plan: Any
    lap: Lap
    rows: int = 0
    ends: bool = False

    def found(self) -> Lap:
        limited = self.ends and isinstance(self.plan, Concatenated)
        return self.lap._replace(rows=self.rows) if limited else self.lap

    def next(self, source: SourceRows, identity: str, layout: str) -> "_OpenLap":
        """The lap that begins where this one ends."""
        self.ends = True
        if identity != self.identity:
            return _OpenLap(identity, layout, source.plan, Lap())
        if isinstance(self.plan, Concatenated) and isinstance(source.plan, Concatenated):
            return _OpenLap(identity, layout, source.plan, self.lap.after(self.rows, self.plan))
        _log.warning(
            "data.sources.%s: a stage cuts its rows otherwise than the one before: the source begins again, in a new "
            "epoch; only texts that are packed by concatenate go on",
            source.name,
        )
        return _OpenLap(identity, layout, source.plan, Lap(self.lap.epoch_of(self.rows, self.plan) + 1))


def _walk(course: Sequence[StageData], opened: Sequence[Dataset]) -> list[tuple[int, dict[str, _StagePart]]]:
    """For each stage: the row of its mixture that it begins with, and its part of each source, by name."""
    laps: dict[str, _OpenLap] = {}
    first, weights, read = 0, None, 0
    found: list[tuple[int, dict[str, tuple[_OpenLap, int]]]] = []
    for reading, data in zip(course, opened, strict=True):
        if not data.sources:  # the run makes the rows of this stage itself
            found.append((0, {}))
            continue
        here = [(source.name, reading.config.sources[source.name].weight) for source in data.sources]
        goes_on = here == weights and not isinstance(data.mixture, Moving)
        first, weights = (first + read if goes_on else 0), here if not isinstance(data.mixture, Moving) else None
        before, after = data.mixture.counts(first), data.mixture.counts(first + reading.rows)
        parts = {}
        for source, low, high in zip(data.sources, before, after, strict=True):
            identity, layout = _identity(source, reading.config), _layout(source, reading.config)
            lap = laps.get(source.name)
            if lap is None:
                lap = _OpenLap(identity, layout, source.plan, Lap())
            elif (lap.identity, lap.layout) != (identity, layout):
                lap = lap.next(source, identity, layout)
            laps[source.name] = lap
            parts[source.name] = (lap, lap.rows - low)
            lap.rows += high - low
        found.append((first, parts))
        read = reading.rows
    return [(first, {n: _StagePart(lap.found(), shift) for n, (lap, shift) in parts.items()}) for first, parts in found]


def _identity(source: SourceRows, config: DataConfig) -> str:
    """Of the documents of a source, and their order."""
    return json.dumps([source.store.digest, config.held_out_of(source.name), source.seed])


def _layout(source: SourceRows, config: DataConfig) -> str:
    """Of how rows are cut."""
    options = config.sources[source.name].model_dump(mode="json", exclude={"weight"})
    shown = {key: options[key] for key in ("overlap",) if key in options}
    if "trajectories" in options:
        shown["overlap"] = options["trajectories"]["overlap"]
    tiles = config.tiles.model_dump(mode="json") if source.tiles is not None else None
    return json.dumps([type(source.plan).__name__, source.length, source.cell, shown, tiles])


def _placed(data: Dataset, first: int, begun: dict[str, _StagePart]) -> Dataset:
    """The rows of `data`, as the parts of its sources say."""
    sources = [dataclasses.replace(source, lap=begun[source.name].lap) for source in data.sources]
    mixture = Continued(data.mixture, first, [begun[source.name].shift for source in data.sources])
    decides = [data.fingerprint, first, {name: [*part.lap, part.shift] for name, part in begun.items()}]
    fingerprint = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    return Dataset(sources, mixture, data.config, data.tokenizer, fingerprint)

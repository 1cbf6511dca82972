"""Reads where a run's wall time went: each second from the first start to the last sign of life is in one class.

| class | what the run did |
|---|---|
| `init` | began: imports, data, references, initial weights, and what else comes before the first update |
| `compile` | compiled the step |
| `data_wait` | let the devices wait for a batch |
| `step` | did updates that count |
| `save` | waited for a checkpoint to be copied from the devices, or for an earlier one to be complete |
| `restore` | read a checkpoint |
| `evaluation` | evaluated |
| `lost_work` | did updates that a later start did again, because they came after the newest checkpoint |
| `idle` | had no process: from the last sign of life of one to the start of the next |

The record is untrusted: lines that are malformed are left out, and their time is `idle`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any, Literal, get_args

from train.goodput.timeline import ALIVE, RECORD, Phase

TimeClass = Literal["init", "compile", "data_wait", "step", "save", "restore", "evaluation", "lost_work", "idle"]
CLASSES: tuple[TimeClass, ...] = get_args(TimeClass)
_PHASES = get_args(Phase)
_FAR = 2**53


@dataclasses.dataclass(frozen=True)
class TimeSpan:
    """Consecutive seconds of one class, from `begin` to `end`, counted from the first start of the run."""

    begin: float
    end: float
    name: TimeClass

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process of the run, from its start to its end or last sign of life."""

    began: float
    """Seconds since 1970."""
    seconds: float
    idle_before: float
    first_step: int | None
    """The first update that it tried; None: it came to none."""
    last_step: int | None
    """The last update that it finished."""
    reason: str | None
    """Why it ended: `done`, or the name of an error. None: it is alive, or it was killed."""


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Where the wall time of a run went."""

    spans: tuple[TimeSpan, ...]
    attempts: tuple[Attempt, ...]
    kwh: float | None
    """Energy of the devices that was measured or estimated while they ran; None: unknown."""

    @property
    def wall(self) -> float:
        """Seconds from the first start to the last sign of life."""
        return self.spans[-1].end if self.spans else 0.0

    @property
    def seconds(self) -> dict[TimeClass, float]:
        """Seconds of every class; their sum is `wall`."""
        found = dict.fromkeys(CLASSES, 0.0)
        for span in self.spans:
            found[span.name] += span.seconds
        return found

    @property
    def fraction(self) -> float | None:
        """The part of the wall time that went into updates that count; None before there is any."""
        return self.seconds["step"] / self.wall if self.wall > 0 else None


def read_goodput(run_dir: str | pathlib.Path) -> Goodput:
    """Of the record in a run directory; without one, nothing has happened."""
    return goodput_of(read_lines(run_dir))


def read_lines(run_dir: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a record, and that of the open interval, which are JSON objects."""
    return [line for name in (RECORD, ALIVE) for line in _lines(pathlib.Path(run_dir) / name)]


def goodput_of(lines: Iterable[dict[str, Any]]) -> Goodput:
    """Of the lines of a record, in order, with that of the open interval at the end."""
    processes = _processes(lines)
    lost = iter(_lost_shares(processes))
    spans: list[TimeSpan] = []
    attempts: list[Attempt] = []
    origin = None  # wall time at which `spans` begins, as this process's clock has it
    for process in processes:
        here = spans[-1].end if spans else 0.0
        origin = process.began if origin is None else origin
        idle = max(0.0, process.began - origin - here)
        if idle:
            spans.append(TimeSpan(here, here + idle, "idle"))
        origin = process.began - here - idle  # later than before if the clock was set back
        for part in process.intervals:
            _add(spans, part, next(lost), origin)
        updates = [part for part in process.intervals if part.name == "step"]
        finished = [part.last for part in updates if part.last >= part.first]
        length = (spans[-1].end if spans else 0.0) - here - idle
        first = min((part.first for part in updates), default=None)
        attempts.append(Attempt(process.began, length, idle, first, max(finished, default=None), process.reason))
    found = [process.kwh for process in processes if process.kwh is not None]
    return Goodput(tuple(spans), tuple(attempts), math.fsum(found) if found else None)


# ---- implementation ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Interval:
    process: str
    name: str
    begin: float
    end: float
    first: int = 0
    last: int = 0
    data_wait: float = 0.0


@dataclasses.dataclass
class _Process:
    began: float
    intervals: list[_Interval] = dataclasses.field(default_factory=list)
    reason: str | None = None
    kwh: float | None = None


def _processes(lines: Iterable[dict[str, Any]]) -> list[_Process]:
    """The processes in the order in which they began, each with intervals that do not overlap."""
    found: dict[str, _Process] = {}
    for line in lines:
        if isinstance(name := line.get("start"), str) and (time := _number(line.get("time"))) is not None:
            found.setdefault(name, _Process(time))
        elif isinstance(name := line.get("end"), str) and name in found:
            found[name].reason = str(line.get("reason"))[:80]
        elif isinstance(name := line.get("process"), str) and name in found:
            process = found[name]
            until = process.intervals[-1].end if process.intervals else process.began
            if (part := _interval(name, line, until)) is not None:
                process.intervals.append(part)
                kwh = _number(line.get("kwh"))
                process.kwh = kwh if kwh is not None and kwh >= 0 else process.kwh
    return list(found.values())


def _interval(process: str, line: dict[str, Any], until: float) -> _Interval | None:
    """The part of a line's interval that comes after `until`; None: there is none."""
    begin, end, name = _number(line.get("from")), _number(line.get("to")), line.get("class")
    if begin is None or end is None or name not in _PHASES or end <= (begin := max(begin, until)):
        return None
    if name != "step":
        return _Interval(process, name, begin, end)
    steps, wait = line.get("steps"), _number(line.get("data_wait")) or 0.0
    first, last = 1, 0
    if isinstance(steps, list) and len(steps) == 2 and all(type(n) is int and 0 <= n < _FAR for n in steps):
        first, last = steps
    return _Interval(process, name, begin, end, first, last, min(max(wait, 0.0), end - begin))


def _add(spans: list[TimeSpan], part: _Interval, lost_share: float, origin: float) -> None:
    """Adds an interval, of whose updates `lost_share` were done again; before it, as `idle`, what no line tells of."""
    begin, end = part.begin - origin, part.end - origin
    here = spans[-1].end if spans else 0.0
    if begin > here + 1e-6:
        spans.append(TimeSpan(here, begin, "idle"))
        here = begin
    if part.name != "step":
        spans.append(TimeSpan(here, end, part.name))  # type: ignore[arg-type]
        return
    waited = min(here + part.data_wait, end)
    lost = end - (end - waited) * lost_share
    for name, until in (("data_wait", waited), ("step", lost), ("lost_work", end)):
        if until > here:
            spans.append(TimeSpan(here, until, name))  # type: ignore[arg-type]
            here = until


def _lost_shares(processes: list[_Process]) -> list[float]:
    """For every interval in order, the part of its updates that were done again later."""
    found: list[float] = []
    elsewhere = _FAR  # the first update of all later processes
    for process in reversed(processes):
        again = elsewhere
        for part in reversed(process.intervals):
            count = part.last - part.first + 1
            if part.name != "step":
                found.append(0.0)
            elif count > 0:
                found.append(max(0, part.last - max(again, part.first) + 1) / count)
            else:  # not one was finished: lost if another process tried it again
                found.append(float(elsewhere <= part.first))
            again = min(again, part.first) if part.name == "step" else again
        elsewhere = min(elsewhere, again)
    return found[::-1]


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    found = []
    for text in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found += [line] if isinstance(line, dict) else []
    return found


def _number(value: Any) -> float | None:
    if type(value) not in (int, float) or not abs(value) < _FAR:
        return None
    return float(value)

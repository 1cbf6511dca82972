"""The goodput of a run while it trains: that of earlier processes, and of this one so far."""

import pathlib

from train.goodput.ledger import CLASSES, Goodput, goodput_of, read_lines
from train.goodput.timeline import Timeline


class LiveGoodput:
    """Of the run in a directory, of which this process does the updates after `start`."""

    def __init__(self, run_dir: pathlib.Path, clock: Timeline, start: int):
        self._run_dir, self._clock, self._start = run_dir, clock, start
        self._before: Goodput | None = None

    @property
    def before(self) -> Goodput:
        """Of earlier processes, up to the start of this one, which does their updates after `start` again."""
        if self._before is None:
            me, began = self._clock.process, self._clock.began
            mine = [{"start": me, "time": began}, {"process": me, "class": "step", "from": began, "to": began + 1e-3,
                    "steps": [self._start + 1, self._start]}]  # fmt: skip
            others = [line for line in read_lines(self._run_dir) if me not in (line.get("start"), line.get("process"))]
            found = goodput_of([*others, *mine])
            self._before = Goodput(found.spans[:-1], found.attempts[:-1], found.kwh)
        return self._before

    def seconds(self) -> dict[str, float]:
        """Seconds of every class so far."""
        before, here = self.before.seconds, self._clock.seconds()
        return {name: round(before[name] + here.get(name, 0.0), 3) for name in CLASSES}

    def line(self) -> dict[str, float | None]:
        """What a training line says: the part of the wall time that went into updates that count."""
        found = self.seconds()
        wall = sum(found.values())
        return {"goodput": found["step"] / wall if wall > 0 else None}

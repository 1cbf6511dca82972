"""The stages of a run, as its metrics name them; no HTML here.

All values come from the run's files, which are untrusted: no value is assumed to have the right type.
"""

import itertools
from typing import Any, NamedTuple

from launch.report.run_record import Line, RunRecord

MAX_STAGES, MAX_NAME = 50, 40
"""Most stages that are shown, and most characters of a name."""


class Ran(NamedTuple):
    """The part of a stage that has run."""

    name: str
    lines: list[Line]

    @property
    def last(self) -> int:
        return self.lines[-1]["step"]

    def value(self, key: str) -> Any:
        """The last value of a metric in the stage; None if it has none."""
        return next((line[key] for line in reversed(self.lines) if line.get(key) is not None), None)


def stages_of(record: RunRecord) -> list[Ran]:
    """The stages in the order in which they ran; none of a run without stages."""
    named = [line for line in record.lines if isinstance(line.get("stage"), str)]
    parts = itertools.groupby(named, key=lambda line: line["stage"])
    return [Ran(name[:MAX_NAME], list(lines)) for name, lines in itertools.islice(parts, MAX_STAGES)]


def borders(record: RunRecord) -> list[int]:
    """The last step of each stage but the last one."""
    return [stage.last for stage in stages_of(record)[:-1]]

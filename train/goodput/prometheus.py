"""The newest numbers of a run in Prometheus' text format, for the textfile collector of a node exporter.

The file `metrics.prom` in the run directory is replaced as a whole. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping

from maverick_jax.files import no_links

FILE = "metrics.prom"
_PREFIX = "maverick_"


class PrometheusFile:
    """A sink that writes the numbers of the newest line, and the run's wall time by class."""

    SECONDS = 5.0
    """Least time between two writes."""

    def __init__(self, run_dir: pathlib.Path, wall: Callable[[], Mapping[str, float]]):
        """wall: seconds by class so far."""
        self._run_dir, self._wall = run_dir, wall
        self._numbers: dict[str, float] = {}
        self._written = -math.inf

    def write(self, step: int, numbers: dict[str, float]) -> None:
        self._numbers |= numbers | {"step": float(step)}
        if time.monotonic() - self._written >= self.SECONDS:
            self._replace()

    def close(self) -> None:
        if self._numbers:
            self._replace()

    def _replace(self) -> None:
        self._written = time.monotonic()
        text = exposition(self._run_dir.resolve().name, self._numbers, self._wall())
        fresh = self._run_dir / f"{FILE}.new"
        with open(fresh, "wb", opener=no_links) as file:
            file.write(text.encode())
        os.replace(fresh, self._run_dir / FILE)


def exposition(run: str, numbers: Mapping[str, float], wall: Mapping[str, float]) -> str:
    """The text: a gauge per number, and the counter `maverick_wall_seconds_total` with the label `class`."""
    label = f'run="{_escaped(run)}"'
    lines = []
    for name, number in sorted(numbers.items()):
        metric = _PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        lines += [f"# TYPE {metric} gauge", f"{metric}{{{label}}} {_number(number)}"]
    total = f"{_PREFIX}wall_seconds_total"
    lines += [f"# HELP {total} Wall time of the run, also of its earlier processes.", f"# TYPE {total} counter"]
    lines += [f'{total}{{{label},class="{_escaped(name)}"}} {_number(seconds)}' for name, seconds in wall.items()]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

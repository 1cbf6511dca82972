"""Read the files of a run for a report.

The files are untrusted: no value is assumed to have the right type, and unreadable lines are counted.
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from maverick_jax.errors import InputError
from maverick_jax.settings.redaction import redact
from maverick_jax.settings.section import did_you_mean
from train.goodput.ledger import Goodput, read_goodput

Line = dict[str, Any]

SAMPLE = "sample.txt"
"""The file of a run directory with text that the model wrote."""
MAX_TEXT = 200_000
"""Most characters of a text file that are read."""


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A text file of the run; `content` is None if the file is missing."""

    content: str | None
    cut: bool = False
    """Whether the file is longer than `content`."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files of a run. Training lines have a `loss`, evaluation lines an `eval_loss`, those of tasks an
    `eval_task_value`; all are sorted by step."""

    directory: pathlib.Path
    training: list[Line]
    evaluations: list[Line]
    unreadable: int
    """Number of malformed lines in metrics.jsonl, except for a last line that is still being written."""
    config: TextFile
    environment: TextFile
    sample: TextFile
    goodput: Goodput = dataclasses.field(default_factory=lambda: Goodput((), (), None))
    """Where its wall time went."""
    tasks: list[Line] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def without_own_samples(self) -> list[Line]:
        """Training lines whose loss is that of the data, not of the model's own samples (`on_policy`)."""
        return [line for line in self.training if not line.get("on_policy")]

    @property
    def lines(self) -> list[Line]:
        return sorted([*self.training, *self.evaluations, *self.tasks], key=lambda line: line["step"])


def read_run(run_dir: str | pathlib.Path, metrics: "MetricsFile | None" = None) -> RunRecord:
    """Read a run's directory. Raises InputError if it has neither config.yaml nor metrics.jsonl. metrics: its metrics
    as far as they were read before; they are read on."""
    directory = require_run(run_dir)
    lines, unreadable = (metrics or MetricsFile(directory / "metrics.jsonl")).read()
    return RunRecord(
        directory=directory,
        training=[line for line in lines if "loss" in line],
        evaluations=[line for line in lines if "eval_loss" in line],
        tasks=[line for line in lines if "eval_task_value" in line],
        unreadable=unreadable,
        goodput=read_goodput(directory),
        **{name.partition(".")[0]: _text(directory / name) for name in ("config.yaml", "environment.json", SAMPLE)},
    )


def require_run(run_dir: str | pathlib.Path) -> pathlib.Path:
    """The directory. Raises InputError if it has neither config.yaml nor metrics.jsonl."""
    directory = pathlib.Path(run_dir)
    if not any((directory / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        reason = "has neither config.yaml nor metrics.jsonl" if directory.is_dir() else "does not exist"
        raise InputError(f"{run_dir}: expected a run directory, but it {reason}{_nearest_run(directory)}")
    return directory


def read_metrics(path: pathlib.Path) -> tuple[list[Line], int]:
    """The lines of a metrics file, sorted by step, and the number of malformed ones. A missing file has no lines.

    A malformed last line without a line break is not counted, since it is still being written.
    """
    return MetricsFile(path).read()


class MetricsFile:
    """A metrics file that grows. Each `read` reads only what has come since the one before; a file that was replaced,
    as by a run that resumes, or that is shorter, is read again."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._forget()

    def read(self) -> tuple[list[Line], int]:
        """As `read_metrics`."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
                    self._forget()
                    self._file = found.st_dev, found.st_ino
                file.seek(self._offset)
                new = file.read()
        except (FileNotFoundError, IsADirectoryError):
            self._forget()
            return [], 0
        whole, _, rest = new.rpartition(b"\n")
        if len(rest) < len(new):
            self._offset += len(whole) + 1
            self._add(whole.split(b"\n"))
        last = _line(rest) if rest else None  # a last line without a line break counts if it is whole
        lines = self._lines if last is None else [*self._lines, last]
        return sorted(lines, key=lambda line: line["step"]), self._unreadable

    def _add(self, texts: list[bytes]) -> None:
        for text in texts:
            line = _line(text)
            self._lines += [] if line is None else [line]
            self._unreadable += line is None

    def _forget(self) -> None:
        self._file: tuple[int, int] | None = None
        self._offset = self._unreadable = 0
        self._lines: list[Line] = []


def _line(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if type(step) is int and 0 <= step < 2**53 else None


def number(value: Any) -> float:
    """A metric as a float; NaN if it is not a number. metrics.jsonl has non-finite values as "NaN" and "Infinity"."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def series(lines: list[Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps int64[n] and values float64[n] of a scalar metric in the lines that have it; NaN for non-finite values."""
    points = [(line["step"], number(line[key])) for line in lines if line.get(key) is not None]
    steps, values = [step for step, _ in points], np.array([value for _, value in points], np.float64)
    return np.array(steps, np.int64), _finite(values)


def layer_series(lines: list[Line], key: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps int64[n] and values float64[n, layers] of a metric with one value per layer, for at most `most` layers."""
    rows = [(line["step"], [number(v) for v in line[key][:most]]) for line in lines if isinstance(line.get(key), list)]
    width = max((len(row) for _, row in rows), default=0)
    values = np.full((len(rows), width), np.nan)
    for i, (_, row) in enumerate(rows):
        values[i, : len(row)] = row
    return np.array([step for step, _ in rows], np.int64), _finite(values)


def _finite(values: np.ndarray) -> np.ndarray:
    """`values` with NaN in place of those that are not finite in float32, the dtype of metrics."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


def _text(path: pathlib.Path) -> TextFile:
    if not path.is_file():
        return TextFile(None)
    with path.open(encoding="utf-8", errors="replace") as file:
        content = file.read(MAX_TEXT + 1)
    return TextFile(redact(content[:MAX_TEXT]), len(content) > MAX_TEXT)


def _nearest_run(directory: pathlib.Path) -> str:
    """A hint at a run inside `directory`, or at a similarly named one next to it."""
    if directory.is_dir():
        inside = sorted(str(path.parent) for path in directory.glob("*/config.yaml"))
        return f"; did you mean {inside[-1]}?" if inside else ""
    siblings = {path.parent.name for path in directory.parent.glob("*/config.yaml")}
    return did_you_mean(directory.name, sorted(siblings))

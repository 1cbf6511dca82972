"""Writes `metrics.jsonl`, the record of a run, and copies it to other sinks.

Each line is one JSON object, written at once and flushed. Numbers that JSON lacks are the strings "NaN", "Infinity" and
"-Infinity", which `float()` reads; null means unknown. A resumed run first drops the lines after its checkpoint, so
that its file has the same lines as an uninterrupted run.
"""

import errno
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import jax
import numpy as np
import pydantic
from pydantic import Field

from maverick_jax.errors import disk_failures
from maverick_jax.files import write_atomically
from maverick_jax.settings.redaction import redacted
from maverick_jax.settings.section import Section
from train.goodput.energy import EnergyConfig
from train.sinks import About, AnySink, OpenSink, ProjectName, SinkConfig, TensorBoard, WeightsAndBiases

log = logging.getLogger(__name__)


class LoggingConfig(Section):
    """What a run records and shows, and how long it may make no progress."""

    every: Annotated[int, Field(ge=1)] = 10
    """Steps between two training lines in metrics.jsonl. The last step always has one."""
    tensorboard: bool = False
    """Also writes event files to `tensorboard/` (requires the extra `tensorboard`): short for a sink of this kind."""
    wandb: ProjectName | None = None
    """Project of Weights & Biases to which metrics are sent too (requires the extra `wandb`): short for a sink of this
    kind. null: none."""
    sinks: dict[str, AnySink] = {}
    """Where metrics are sent besides metrics.jsonl, by names of your choice."""
    energy: EnergyConfig = EnergyConfig()
    """For estimates of energy and CO2."""
    profile_start: Annotated[int, Field(ge=0)] = 0
    """First step of a profiler trace, at least 2, because the first step of a process compiles. 0: no trace."""
    profile_steps: Annotated[int, Field(ge=1)] = 3
    """Number of steps in the profiler trace, which is written to `profile/`."""
    watchdog_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Maximum time between the ends of two updates, including an evaluation or save between them. When it is exceeded,
    the process dumps its stacks and exits with code 77. The first update, which compiles, may take ten times as long.
    0: no limit."""
    progress: bool = True
    """Shows progress: a bar in a terminal, lines elsewhere."""

    @property
    def all_sinks(self) -> dict[str, SinkConfig]:
        """The sinks, by the keys of the config that ask for them."""
        short: dict[str, SinkConfig] = {"logging.tensorboard": TensorBoard()} if self.tensorboard else {}
        if self.wandb is not None:
            short["logging.wandb"] = WeightsAndBiases(project=self.wandb)
        return short | {f"logging.sinks.{name}": sink for name, sink in self.sinks.items()}

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.profile_start == 1:
            raise ValueError("profile_start: step 1 compiles and cannot be traced; expected 0 (no trace) or at least 2")
        return self


class MetricsWriter:
    """Writes the lines of one run. Only process 0 writes; other processes ignore all calls."""

    def __init__(
        self,
        run_dir,
        config: LoggingConfig | None = None,
        *,
        step: int = 0,
        require_held: Callable[[], None] = lambda: None,
        public: dict[str, Any] | None = None,
        beside: Sequence[OpenSink] = (),
        stage: str = "",
    ):
        """`step`: the step from which the run resumes; lines of later steps are dropped. `require_held`: raises if
        another job writes to the run directory; called before each write. `public`: the run's config without secrets,
        for the sinks. `beside`: sinks that every run has. `stage`: what each line names; empty: lines name none.

        Raises InputError if the package of a configured sink is not installed.
        """
        config = config or LoggingConfig()
        check_sinks(config)
        self._path: pathlib.Path | None = None
        self._sinks: list[OpenSink] = []
        self._require_held = require_held
        self._constant = {"stage": stage} if stage else {}
        if jax.process_index() == 0:
            self._path = pathlib.Path(run_dir) / "metrics.jsonl"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            require_held()
            drop_lines_after(self._path, step)
            about = About(pathlib.Path(run_dir), public or {})
            self._sinks = [*beside, *(sink.open(about) for sink in config.all_sinks.values())]

    def write(self, line: dict[str, Any]) -> None:
        """`line` has `step`; its values are numbers, None, strings, arrays, or lists and dicts of them."""
        if self._path is None:
            return
        self._require_held()
        line = {"step": line["step"], **self._constant, **line}
        # one unbuffered call, so that a killed process leaves the whole line or none of it
        text = (json.dumps(redacted(plain(line)), allow_nan=False) + "\n").encode()
        with disk_failures(self._path), self._path.open("ab", buffering=0) as file:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, "", str(self._path))
        numbers = {k: float(v) for k, v in _flat(line) if k != "step" and np.ndim(v) == 0 and _is_number(v)}
        for sink in self._sinks:
            sink.write(int(line["step"]), numbers)

    def close(self) -> None:
        """The sinks finish what they began."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.close()


def _flat(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every value that is not a dict. The name of a value inside a dict is `outer/inner`."""
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Removes the lines of steps after `step`, and lines that are not JSON, by an atomic rewrite of the file."""
    if not path.exists():
        return
    kept, dropped = [], 0
    for line in path.read_bytes().splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            log.warning("%s: dropping a malformed line: %r", path, line[:80])
            keep = False
        kept += [line + b"\n"] if keep else []
        dropped += not keep
    if dropped:
        write_atomically(path, b"".join(kept))
        log.info("%s: dropped %d line(s) after step %d, from which the run resumes", path, dropped, step)


def plain(value):
    """`value` as a JSON value: arrays as lists, non-finite numbers as strings."""
    match value:
        case dict():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case None | str() | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case float():
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    array = np.asarray(value)  # bfloat16 has no Python twin
    return plain(array.astype(np.float64).tolist() if array.dtype.kind in "fV" else array.tolist())


def check_sinks(config: LoggingConfig) -> None:
    """Raises InputError if the package of a configured sink is not installed."""
    for key, sink in config.all_sinks.items():
        sink.check(key)


def _is_number(value) -> bool:
    return not isinstance(value, bool | str) and value is not None and np.asarray(value).dtype.kind in "iufV"

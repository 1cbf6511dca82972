"""The writer of `metrics.jsonl`, the record of a run, and of the sinks that copy it elsewhere.

One JSON object a line, written whole and flushed. Numbers that JSON lacks are the strings "NaN", "Infinity" and
"-Infinity", which `float()` reads; null means unknown. A resumed run first drops the lines after its checkpoint, so
that its file ends up with the lines of a run that was never interrupted.
"""

import importlib.util
import json
import logging
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import jax
import numpy as np
import pydantic
from pydantic import Field

from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

Sink = Callable[[int, dict[str, float]], None]


class LoggingConfig(Section):
    """What a run records and shows of itself, and how long it may be silent."""

    every: Annotated[int, Field(ge=1)] = 10
    """Steps between two training lines in metrics.jsonl. The last step always has one."""
    tensorboard: bool = False
    """Also write event files to `tensorboard/` (needs the extra `tensorboard`)."""
    wandb: str | None = None
    """Also send to Weights & Biases, to this project (needs the extra `wandb`); null: do not."""
    profile_start: Annotated[int, Field(ge=0)] = 0
    """First step of a profiler trace, at least 2: a process's first step compiles, and is not traced. 0: no trace."""
    profile_steps: Annotated[int, Field(ge=1)] = 3
    """Steps in the profiler trace, written to `profile/`."""
    watchdog_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Longest time between the ends of two updates, an evaluation or save between them included, before the process
    dumps its stacks and exits with code 77; ten times as long for the first, which compiles. 0: no limit."""
    progress: bool = True
    """Show progress: a bar on a terminal, lines elsewhere."""

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.profile_start == 1:
            raise ValueError("profile_start: 1, which compiles, cannot be traced; expected 0 (no trace) or at least 2")
        return self


class MetricsWriter:
    """Writes the lines of one run; only process 0 does, the others ignore all calls."""

    def __init__(self, run_dir, config: LoggingConfig | None = None, *, step: int = 0):
        """`step`: the one the run resumes from; lines of later steps are dropped.

        Raises InputError when a sink is asked for and its package is not installed.
        """
        config = config or LoggingConfig()
        check_sinks(config)
        self._path: pathlib.Path | None = None
        self._sinks: list[Sink] = []
        if jax.process_index() == 0:
            self._path = pathlib.Path(run_dir) / "metrics.jsonl"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_lines_after(self._path, step)
            self._sinks = _open_sinks(config, pathlib.Path(run_dir))

    def write(self, line: dict[str, Any]) -> None:
        """`line` has `step`; its values are numbers, None, strings, arrays, or lists and dicts of them."""
        if self._path is None:
            return
        # One unbuffered call: a process that is killed leaves the whole line or none of it.
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps(plain(line), allow_nan=False) + "\n").encode())
        numbers = {k: float(v) for k, v in _flat(line) if k != "step" and np.ndim(v) == 0 and _is_number(v)}
        for sink in self._sinks:
            sink(int(line["step"]), numbers)


def _flat(line: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every value that is not a dict; inside a dict the name is `outer/inner`."""
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def drop_lines_after(path: pathlib.Path, step: int) -> None:
    """Rewrites the file at once, without the lines of steps after `step` and without lines that are not JSON."""
    if not path.exists():
        return
    kept, dropped = [], 0
    for line in path.read_bytes().splitlines():
        try:
            keep = json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            log.warning("%s: dropping a line that is not a record: %r", path, line[:80])
            keep = False
        kept += [line + b"\n"] if keep else []
        dropped += not keep
    if dropped:
        write_atomically(path, b"".join(kept))
        log.info("%s: dropped %d line(s) after step %d, from which the run resumes", path, dropped, step)


def plain(value):
    """`value` as JSON can hold it: arrays as lists, non-finite numbers as strings."""
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
    """Raises InputError when a sink is asked for and its package is not installed."""
    for key, wanted, package in (
        ("tensorboard", config.tensorboard, "tensorboardX"),
        ("wandb", config.wandb is not None, "wandb"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            raise InputError(
                f"logging.{key} is set, but the package {package} is not installed: "
                f"pip install 'maverick-jax[{key}]', or leave logging.{key} out"
            )


def _open_sinks(config: LoggingConfig, run_dir: pathlib.Path) -> list[Sink]:
    return [
        *([_tensorboard(run_dir)] if config.tensorboard else []),
        *([_wandb(config.wandb, run_dir)] if config.wandb is not None else []),
    ]


def _tensorboard(run_dir: pathlib.Path) -> Sink:
    import tensorboardX

    events = tensorboardX.SummaryWriter(str(run_dir / "tensorboard"))

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            events.add_scalar(name, number, step)
        events.flush()

    return write


def _wandb(project: str, run_dir: pathlib.Path) -> Sink:
    import wandb

    run = wandb.init(project=project, name=run_dir.name, dir=str(run_dir), id=run_dir.name, resume="allow")
    return lambda step, numbers: run.log(numbers, step=step)


def _is_number(value) -> bool:
    return not isinstance(value, bool | str) and value is not None and np.asarray(value).dtype.kind in "iufV"

"""What a run is doing, from its files alone: its state, newest metrics, goodput and events.

The files are untrusted: no value is assumed to have the right type. Nothing is written and no device is used.
"""

import dataclasses
import datetime
import math
import pathlib
import time
from typing import Any, Literal

from launch.report.run_record import Line, MetricsFile, RunRecord, number, read_run
from launch.report.summary import planned_steps
from launch.report.wall_time import ENDS
from launch.runs.happened import happened
from maverick_jax.checkpoint.lease import STALE, Holder, holder_of
from maverick_jax.checkpoint.store import CheckpointStore
from maverick_jax.errors import InputError, harmless
from maverick_jax.model_source import CHECKPOINTS
from train.goodput.ledger import Attempt

State = Literal["running", "finished", "preempted", "failed", "stopped"]
RECENT = 10
"""Training lines whose median is the speed."""
_STOPPED = ("KeyboardInterrupt", "SystemExit")


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    time: float
    """Seconds since 1970."""
    text: str

    def __str__(self) -> str:
        return f"{moment(self.time)} {self.text}"


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """A run at one moment."""

    record: RunRecord
    state: State
    reason: str
    """Why it is in this state; for a run that is alive, who runs it."""
    steps: int | None
    """Steps of the whole run; None: unknown."""
    checkpoints: tuple[int, ...]
    """Steps of the complete checkpoints, ascending; they are not verified."""
    events: tuple[Event, ...]
    """Ordered by time."""

    @property
    def name(self) -> str:
        return harmless(self.record.name)

    @property
    def step(self) -> int:
        """The newest step in metrics.jsonl, or of a checkpoint."""
        return max([line["step"] for line in self.record.lines] + [*self.checkpoints[-1:]], default=0)

    @property
    def loss(self) -> float | None:
        return _newest(self.record.without_own_samples, "loss")

    @property
    def held_out_loss(self) -> float | None:
        return _newest(self.record.evaluations, "eval_loss")

    @property
    def tokens_per_second(self) -> float | None:
        """Median of the newest `RECENT` training lines."""
        found = [
            value for line in self.record.training if math.isfinite(value := number(line.get("tokens_per_second")))
        ]
        newest = sorted(found[-RECENT:])
        return newest[len(newest) // 2] if newest else None

    @property
    def goodput(self) -> float | None:
        return self.record.goodput.fraction

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the speed of the newest lines; None: unknown, or it is not running."""
        seconds = [value for line in self.record.training[-RECENT:] if (value := number(line.get("step_seconds"))) > 0]
        if self.state != "running" or self.steps is None or not seconds:
            return None
        return max(0, self.steps - self.step) * sorted(seconds)[len(seconds) // 2]

    def as_json(self) -> dict[str, Any]:
        last = self.events[-1] if self.events else None
        return {
            "run": self.name,
            "run_dir": str(self.record.directory),
            "state": self.state,
            "reason": self.reason,
            "step": self.step,
            "steps": self.steps,
            "loss": self.loss,
            "held_out_loss": self.held_out_loss,
            "tokens_per_second": self.tokens_per_second,
            "goodput": self.goodput,
            "starts": len(self.record.goodput.attempts),
            "checkpoints": list(self.checkpoints),
            "last_event": last and {"time": last.time, "text": last.text},
        }


def status(run_dir: str | pathlib.Path, now: float | None = None, *, metrics: MetricsFile | None = None) -> RunStatus:
    """Of the run in a directory. Raises InputError if it is not one. now: seconds since 1970; None: the present.
    metrics: the run's, to be read on from where they were read before."""
    record = read_run(run_dir, metrics)
    steps = planned_steps(record)
    folder = record.directory / CHECKPOINTS
    saved = tuple(CheckpointStore(folder, read_only=True).steps())
    state, reason = _state(record, steps, saved, holder_of(folder), time.time() if now is None else now)
    return RunStatus(record, state, reason, steps, saved, tuple(_events(record, folder, saved)))


def runs_in(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The run directories in a folder, sorted by name; the folder itself if it is one. Raises InputError if it does
    not exist."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of runs, but it does not exist")
    is_run = lambda path: any((path / name).is_file() for name in ("config.yaml", "metrics.jsonl"))
    if is_run(folder):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path))


def moment(seconds: float) -> str:
    """A time in this machine's time zone, to the second."""
    try:
        return f"{datetime.datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return "unknown time"


# ---- implementation --------------------------------------------------------------------------------------------------


def _state(
    record: RunRecord, steps: int | None, saved: tuple[int, ...], holder: Holder | None, now: float
) -> tuple[State, str]:
    last = record.goodput.attempts[-1] if record.goodput.attempts else None
    if holder is not None and (alive := _alive(holder, now)) is not None:
        return alive, f"{'' if alive == 'running' else 'no sign of life from '}{harmless(str(holder))}"
    if last is not None and last.reason == "done":
        return "finished", "all steps done"
    if last is None or last.reason is None:
        if steps is not None and steps in saved:
            return "finished", "all steps done"
        return "stopped", "killed: it left no record of its end" if last else "no record of a start"
    if last.reason == "Preempted":
        return "preempted", "asked to stop, after a save"
    why = ENDS.get(last.reason, harmless(last.reason))
    return "stopped" if last.reason in _STOPPED else "failed", why


def _alive(holder: Holder, now: float) -> State | None:
    """`running`; `stopped` if the holder of the lease, on another machine, is silent; None if its process has ended."""
    if holder.has_ended:
        return None
    return "running" if holder.has_ended is False or now - holder.beat <= STALE else "stopped"


def _events(record: RunRecord, folder: pathlib.Path, saved: tuple[int, ...]) -> list[Event]:
    """Starts and ends, evaluations, the checkpoints that are kept, and what the run recorded itself (`happened`)."""
    found = _evaluations(record) + [Event(*event) for event in happened(record.directory)]
    attempts = record.goodput.attempts
    for i, attempt in enumerate(attempts):
        found.append(Event(attempt.began, _began(i, attempt)))
        if attempt.reason is not None or i + 1 < len(attempts):
            after = f" after step {attempt.last_step:,}" if attempt.last_step else ""
            how = ENDS.get(attempt.reason, harmless(attempt.reason or "")) if attempt.reason else "killed"
            found.append(Event(attempt.began + attempt.seconds, f"ended{after}: {how}"))
    for step in saved:
        try:
            found.append(Event((folder / str(step)).stat().st_mtime, f"checkpoint of step {step:,}"))
        except OSError:  # deleted in the meantime
            continue
    return sorted(found, key=lambda event: event.time)


def _began(index: int, attempt: Attempt) -> str:
    if not index:
        return "started"
    return "started again" + ("" if attempt.first_step is None else f" from step {attempt.first_step - 1:,}")


def _evaluations(record: RunRecord) -> list[Event]:
    """Times come from goodput.jsonl, whose newest spans of the class belong to the newest lines."""
    attempts, spans = record.goodput.attempts, record.goodput.spans
    if not attempts:
        return []
    began = attempts[0].began
    ends = [began + span.end for span in spans if span.name == "evaluation"]
    found = []
    lines = sorted([*record.evaluations, *record.tasks], key=lambda line: line["step"])
    for line, end in zip(lines[::-1], ends[::-1], strict=False):
        said = f"held-out loss {number(line['eval_loss']):.4f}" if "eval_loss" in line else "tasks"
        found.append(Event(end, f"evaluation at step {line['step']:,}: {said}"))
    return found


def _newest(lines: list[Line], key: str) -> float | None:
    value = number(lines[-1].get(key)) if lines else math.nan
    return value if math.isfinite(value) else None

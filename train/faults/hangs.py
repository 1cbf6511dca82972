"""Ends a process that stays in one phase of a run for too long: its start, a compilation, an update, a save, ..."""

import contextlib
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, NoReturn

import jax
from pydantic import Field

from maverick_jax import events
from maverick_jax.checkpoint.lease import release_all
from maverick_jax.errors import HUNG
from maverick_jax.progress import duration
from maverick_jax.settings.section import Section
from train.faults.processes import hung
from train.faults.stacks import write_stacks
from train.goodput import timeline
from train.goodput.timeline import Timeline

STEP_TIMES, STEP_LEAST, STEP_KNOWN = 10, 60.0, 3
"""An update may take so many times as long as the longest of the last ones, and at least so many seconds; it is known
after so many updates of a process."""
Seconds = Annotated[float, Field(ge=0)]


class HangsConfig(Section):
    """The longest time that each phase of a run may take, in seconds; 0: no limit."""

    start: Seconds = 0.0
    """Before the first update: imports, the preparation of data, references, initial weights."""
    compile: Seconds = 7200.0
    """The compilation of the step, and each of the first updates of a process, which may compile too."""
    data: Seconds = 1800.0
    """The wait for a batch while the devices have nothing to do."""
    step: Seconds | None = None
    """An update. null: ten times the longest of the last 50 updates, and at least a minute."""
    save: Seconds = 3600.0
    """A save, as long as updates wait for it."""
    restore: Seconds = 7200.0
    """The restoring of a checkpoint."""
    evaluation: Seconds = 7200.0
    """An evaluation."""

    def budget(self, phase: str, updates: list[float]) -> tuple[str, float]:
        """The key of the limit of a phase, and the limit; `updates`: seconds of the last updates."""
        key = {"init": "start"}.get(phase, phase)
        if key != "step" or self.step is not None:
            return key, getattr(self, key)
        if len(updates) < STEP_KNOWN:
            return "compile", self.compile
        return "step", max(STEP_LEAST, STEP_TIMES * max(updates))


@contextlib.contextmanager
def watched(config: HangsConfig | None, run_dir: pathlib.Path, clock: Timeline) -> Iterator[None]:
    """The phases of `clock` are watched while the block lasts. Past a limit, the stacks of all threads are written to
    `run_dir/stacks-<process>.txt` and stderr, and the process exits with code 77."""
    if config is None:
        yield
        return
    over = threading.Event()
    watch = _Watch(config, run_dir, clock, end_hung)
    threading.Thread(target=watch.until, args=(over,), name="hangs", daemon=True).start()
    try:
        yield
    finally:
        over.set()


class _Watch:
    """Looks at the phase of a timeline now and then."""

    def __init__(
        self, config: HangsConfig, run_dir: pathlib.Path, clock: Timeline, end: Callable[[str, pathlib.Path], None]
    ):
        self._config, self._clock, self._end = config, clock, end
        self._path = run_dir / f"stacks-{jax.process_index()}.txt"
        self._other = 0.0
        """When another run was last seen to train in between, such as that of a teacher; seconds since 1970."""

    def until(self, over: threading.Event) -> None:
        while not over.wait(min([1.0, *(s / 4 for s in self._config.model_dump().values() if s)])):
            self.look()

    def look(self) -> None:
        now = self._clock.now()
        if timeline.running() is not self._clock:
            self._other = now
            return
        phase, since, step, updates = self._clock.doing()
        key, limit = self._config.budget(phase, updates)
        if limit and now - max(since, self._other) > limit:
            learned = " (learned from the last updates)" if key == "step" and self._config.step is None else ""
            self._end(
                f"watchdog: process {jax.process_index()} on {os.uname().nodename}: phase {phase!r} after update "
                f"{step} has lasted more than {duration(limit)}, its limit at guard.hangs.{key}{learned}",
                self._path,
            )


def end_hung(message: str, path: pathlib.Path) -> NoReturn:
    """Writes the message and the stacks of all threads to `path` and stderr, and ends the process with code 77. The
    others of its job do the same: the one that they wait for may be another."""
    events.record("hung", process=jax.process_index(), problem=message)
    write_stacks(f"{message}. It ends with exit code {HUNG}; where its threads were:\n", path)
    timeline.leaving("Watchdog")
    release_all()
    hung(message)
    os._exit(HUNG)

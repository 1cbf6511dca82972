"""Records where a run's wall time goes, so that a killed process loses at most `BEAT` seconds of the record.

`goodput.jsonl` in the run directory has one JSON object per line:

- `start`: a process begins; with its time, host and job;
- `class`, `from`, `to`: seconds of one class. Updates are summed: an interval of the class `step` has the updates that
  it did (`steps: [first, last]`) and the part of the time in which the devices had nothing to do but wait for a batch
  (`data_wait`). It ends when something else begins, such as a save;
- `end`: a process ends in order, with the reason.

The interval that is still open is in `goodput.alive`, rewritten every `BEAT` seconds. `train.goodput.ledger` reads
both. Times are seconds since 1970, of a clock that is not set back while the process lives. Process 0 alone writes,
from the moment when the run is known to be this one; earlier seconds are kept until then.
"""

import collections
import contextlib
import json
import os
import pathlib
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax

from maverick_jax.files import no_links

RECORD, ALIVE = "goodput.jsonl", "goodput.alive"
BEAT = 1.0
"""Seconds between two signs of life."""
LAST_UPDATES = 50
"""Updates whose seconds are kept."""
Phase = Literal["init", "compile", "step", "save", "restore", "evaluation"]
"""What a process can be in; `train.goodput.ledger` makes the other classes from these."""


class Timeline:
    """The phases of one process in one run. A new one is in `init`."""

    def __init__(self, began: float | None = None, time_of: Callable[[], float] | None = None):
        """began: seconds since 1970; None: now. time_of: the clock; None: one that is never set back."""
        origin = time.time() - time.monotonic()
        self.now = time_of or (lambda: origin + time.monotonic())
        self.process = uuid.uuid4().hex[:12]
        self.began = self.now() if began is None else began
        self.beside: Callable[[], dict[str, Any]] = dict
        """Further values of each line, such as the energy used so far."""
        self.each_beat: Callable[[], object] = lambda: None
        """Called at each sign of life, in a thread of its own; may take long."""
        self.blocked = 0.0
        """Seconds of updates in which this process waited for devices or for other processes."""
        self.fetching: float | None = None
        """When the process began to fetch a batch (`time.perf_counter`); None: it has the batch."""
        self.is_idle: Callable[[], bool] = lambda: False
        """Whether the devices have nothing to do."""
        self._updated, self._updates = 0.0, collections.deque[float](maxlen=LAST_UPDATES)
        self._lock = threading.RLock()
        self._phase: Phase = "init"
        self._since, self._steps, self._data_wait = self.began, (0, 0), 0.0
        self._pending: list[dict[str, Any]] = []
        self._totals: dict[str, float] = {}
        self._folder: pathlib.Path | None = None
        self._over = threading.Event()

    # ---- what happens ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def phase(self, name: Phase, step: int = 0) -> Iterator[None]:
        """The time inside is of the class `name`. step: updates done before, for the class `step`."""
        before = self._phase
        self._switch(name)
        if step:
            self._steps = (step, step)
        try:
            yield
        finally:
            self._switch(before)

    def updated(self, step: int) -> None:
        """Update `step` is done."""
        now = self.now()
        self._updates.append(now - max(self._since, self._updated))
        self._updated, self._steps = now, (self._steps[0], step)

    def waited(self, seconds: float) -> None:
        """The devices had nothing to do for so long, because there was no batch."""
        self._data_wait += seconds

    def doing(self) -> tuple[str, float, int, list[float]]:
        """The phase, or `data` where the devices wait for a batch; when it began, or the last update of this phase
        ended; the last update; seconds of the last updates. Takes no lock, which a thread that hangs may hold."""
        since, (_, step), updates = max(self._since, self._updated), self._steps, list(self._updates.copy())
        if self._phase == "step" and (began := self.fetching) is not None and self.is_idle():
            return "data", self.now() - (time.perf_counter() - began), step, updates
        return self._phase, since, step, updates

    def _switch(self, name: Phase) -> None:
        with self._lock:
            if name == self._phase:
                return
            self._close_interval()
            self._phase = name
            self._append()

    def _close_interval(self) -> None:
        interval = self._open_interval()
        first, last = interval.get("steps", (1, 0))
        if interval["to"] > interval["from"] or last >= first:
            self._pending.append(interval)
            self._totals = _added(self._totals, interval)
        self._since, self._data_wait, self._steps = interval["to"], 0.0, (self._steps[1], self._steps[1])

    def _open_interval(self) -> dict[str, Any]:
        """The interval from the last change until now."""
        first, last = self._steps
        found = {"process": self.process, "class": self._phase, "from": self._since, "to": round(self.now(), 3)}
        if self._phase == "step":
            wait = self._data_wait
            if (since := self.fetching) is not None and self.is_idle():  # it may hang, and never return
                wait += time.perf_counter() - since
            found |= {"steps": [first + 1, last], "data_wait": round(min(wait, found["to"] - self._since), 3)}
        return found | self.beside()

    def seconds(self) -> dict[str, float]:
        """Seconds of this process so far, by class."""
        with self._lock:
            return _added(self._totals, self._open_interval())

    # ---- the record ------------------------------------------------------------------------------------------------

    def record_to(self, run_dir: str | pathlib.Path) -> None:
        """From here on the timeline is on disk, with what came before. Only process 0 writes."""
        if jax.process_index() or self._folder is not None:
            return
        with self._lock:
            self._folder = pathlib.Path(run_dir)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._settle()
            job = next((os.environ[n] for n in ("MAVERICK_JOB_ID", "SLURM_JOB_ID") if os.environ.get(n)), None)
            start = {"start": self.process, "time": round(self.began, 3), "host": platform.node(), "job": job}
            self._beat()
            self._write([start])
            self._append()
        threading.Thread(target=self._beat_until_over, name="goodput", daemon=True).start()

    def end(self, reason: str, patience: float = -1) -> None:
        """The process is done with the run. patience: longest time to wait for a thread that hangs while it writes."""
        if not self._lock.acquire(timeout=patience):
            return
        try:
            if self._over.is_set():
                return
            self._close_interval()
            self._append()
            if self._folder is not None and self._is_ours():
                self._write([{"end": self.process, "time": self._since, "reason": reason}])
                with contextlib.suppress(OSError):
                    (self._folder / ALIVE).unlink(missing_ok=True)
            self._over.set()
        finally:
            self._lock.release()

    def _settle(self) -> None:
        """Moves the open interval of a process that was killed to the record, whose last line ends."""
        assert self._folder is not None
        with contextlib.suppress(OSError), (self._folder / RECORD).open("r+b", buffering=0) as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self._folder / ALIVE).read_bytes())
            if isinstance(found, dict) and found.get("class"):
                self._write([found])

    def _append(self) -> None:
        if self._folder is None or not self._is_ours():
            return
        new, self._pending = self._pending, []
        self._write(new)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        """One unbuffered call, so that a killed process leaves whole lines."""
        if not lines or self._folder is None:
            return
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with contextlib.suppress(OSError), (self._folder / RECORD).open("ab", buffering=0) as file:
            file.write(text.encode())

    def _beat_until_over(self) -> None:
        while not self._over.wait(BEAT):
            self.each_beat()
            with self._lock:
                if not self._over.is_set() and self._is_ours():
                    self._beat()

    def _beat(self) -> None:
        assert self._folder is not None
        fresh = self._folder / f"{ALIVE}.new"
        with contextlib.suppress(OSError):  # a full disk must not end the run
            with open(fresh, "wb", opener=no_links) as file:
                file.write(json.dumps(self._open_interval()).encode())
            fresh.replace(self._folder / ALIVE)

    def _is_ours(self) -> bool:
        """False once another process has begun to record: it has taken over the run directory."""
        assert self._folder is not None
        try:
            return json.loads((self._folder / ALIVE).read_bytes())["process"] == self.process
        except FileNotFoundError:
            return True
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _added(totals: dict[str, float], interval: dict[str, Any]) -> dict[str, float]:
    """The seconds by class with those of an interval."""
    waited = interval.get("data_wait", 0.0)
    parts = {interval["class"]: interval["to"] - interval["from"] - waited, "data_wait": waited}
    return totals | {name: totals.get(name, 0.0) + seconds for name, seconds in parts.items()}


_running: list[Timeline] = []


def running() -> Timeline | None:
    """The timeline of the run that this process trains; None outside a run."""
    return _running[-1] if _running else None


def current() -> Timeline:
    """The timeline of the run that this process trains; outside a run, one that nobody reads."""
    return _running[-1] if _running else Timeline()


def leaving(reason: str) -> None:
    """Ends every timeline, of a process that is about to end without its ordinary way out."""
    for found in reversed(_running):
        found.end(reason, patience=1.0)


def phase(name: Phase):
    """`with phase("compile"):` the time inside is of this class, in the run that this process trains."""
    return current().phase(name)


@contextlib.contextmanager
def timed() -> Iterator[Timeline]:
    """The timeline of a run, while it is open. The first of a process of its own begins when that process began."""
    found = Timeline(None if _running else _began())
    _running.append(found)
    reason = "done"
    try:
        yield found
    except BaseException as error:
        reason = type(error).__name__
        raise
    finally:
        _running.remove(found)
        found.end(reason)


def _began() -> float | None:
    """When this process began, if it runs the command `maverick` alone; None: unknown, or it has done other things."""
    if pathlib.Path(sys.argv[0]).name not in ("maverick", "cli.py"):
        return None
    try:
        ticks = int(pathlib.Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None
    return time.time() - max(0.0, up - ticks / os.sysconf("SC_CLK_TCK"))

"""Ends a process that hangs. JAX detects dead peers, but not peers that are alive and stuck."""

import faulthandler
import pathlib
import threading
import time
from typing import Any

import jax

from maverick_jax.progress import duration
from train.faults.hangs import end_hung
from train.loop import Hook

_FIRST = 10  # the first update compiles
_STDERR = 2


class Watchdog(Hook):
    """If no update ends within `seconds` (ten times as long before the first one), dumps all stacks to
    `run_dir/stacks-<process>.txt` and stderr and exits with code 77."""

    def __init__(self, seconds: float, run_dir):
        self._seconds = seconds
        self._path = pathlib.Path(run_dir) / f"stacks-{jax.process_index()}.txt"
        self._last_step: int | None = None
        self._closed = threading.Event()
        self._arm(_FIRST * seconds)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        self._last_step = step
        self._arm(self._seconds)

    def close(self) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        # the watchdog's thread needs the interpreter lock; if a stuck call holds it, this timer ends the process
        faulthandler.dump_traceback_later(seconds + 60, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() > self._deadline:
                self._end()

    def _end(self) -> None:
        first = self._last_step is None
        limit = duration(self._seconds * (_FIRST if first else 1))
        since = "before the first update" if first else f"after update {self._last_step}"
        end_hung(
            f"watchdog: process {jax.process_index()} made no progress for {limit} {since} (logging.watchdog_seconds: "
            f"{self._seconds:g})",
            self._path,
        )

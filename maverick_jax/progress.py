"""Progress of long work on the host, on standard error: a live bar in a terminal, occasional lines elsewhere."""

import sys
import threading
import time

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 10.0


_number = ""


def number_lines(process_id: int) -> None:
    """From here on, lines begin with the number of this process of a job of several."""
    global _number
    _number = f"[{process_id}] "


def say(text: str) -> None:
    """Prints a line on standard error."""
    print(f"{_number}{text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min` or `3 d 04 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


class Working:
    """`with Working("compiling"):` shows that a piece of work whose length is unknown goes on: the time that has passed
    in a terminal, a line at once and then every `SECONDS_BETWEEN_LINES` elsewhere. At its end a line says how long it
    took. The work may hold the main thread in native code."""

    def __init__(self, what: str, *, shown: bool = True, done: str = ""):
        """`done`: what the last line calls it."""
        self._what, self._done, self._shown = what, done or what, shown
        self._over = threading.Event()
        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
        console = Console(stderr=True)
        self._bar = Bar(*columns, console=console, transient=True) if shown and console.is_terminal else None

    def __enter__(self):
        self._since = time.monotonic()
        if self._bar:
            self._bar.start()
            self._bar.add_task(self._what, total=None)
        elif self._shown:
            say(self._what)
            threading.Thread(target=self._lines, name="progress", daemon=True).start()
        return self

    def __exit__(self, kind, *_) -> None:
        self._over.set()
        if self._bar:
            self._bar.stop()
        if self._shown and kind is None:
            say(f"{self._done} in {duration(time.monotonic() - self._since)}")

    def _lines(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LINES):
            say(f"{self._what}: {duration(time.monotonic() - self._since)}")


class ProgressDisplay:
    """`with ProgressDisplay(title, columns) as progress: progress.update(line)`. A terminal shows the columns, with the
    line as their `description`; otherwise the line is printed every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, title: str, columns: tuple[ProgressColumn, ...], total: float | None = None):
        console = Console(stderr=True)
        self._title, self._total, self._last = title, total, time.monotonic()
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self):
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, line: str, completed: float | None = None) -> None:
        if self._bar:
            self._bar.update(self._task, description=line, completed=completed)
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            say(line)


class ByteProgress:
    """Progress of `total` bytes: `with ByteProgress(title, total, done) as progress: progress.advance(n)`, from any
    thread. `done`: number of bytes finished in an earlier attempt."""

    def __init__(self, title: str, total: int, done: int = 0):
        text = TextColumn(title, markup=False)
        columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = ProgressDisplay(title, columns, total)
        self._title, self._total, self._at_start, self._done = title, total, done, done
        self._started, self._lock = time.monotonic(), threading.Lock()

    def __enter__(self):
        self._progress.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._progress.__exit__(*error)

    def advance(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            rate = (self._done - self._at_start) / max(time.monotonic() - self._started, 1e-9)
            left = (self._total - self._done) / max(rate, 1.0)
            self._progress.update(
                f"{self._title}: {decimal(self._done)} of {decimal(self._total)}, {decimal(int(rate))}/s, "
                f"{left:.0f} s left",
                self._done,
            )

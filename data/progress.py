"""How far tokenising is: a live line on a terminal, a plain one now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """`with Progress(name) as progress`: tell it the current file and the running totals."""

    def __init__(self, name: str):
        self._name, self._file, self._last = name, "", time.monotonic()
        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(f"tokenising {self._name}", total=None)
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def part(self, label: str) -> None:
        self._file = label

    def update(self, tokens: int, documents: int) -> None:
        line = f"tokenising {self._name}: {tokens:,} tokens, {documents:,} documents, reading {self._file}"
        if self._bar:
            self._bar.update(self._task, description=line)
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

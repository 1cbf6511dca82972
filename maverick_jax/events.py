"""`events.jsonl`: what happened to a run besides updates, each with the time of day.

Parts of a run that have no way to its metrics, such as threads of the checkpoint store, record here too. A line is a
JSON object with `time` (seconds since 1970), `event` and what else the event has. A full disk loses lines and never
ends the run.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from maverick_jax.settings.redaction import redacted

FILE = "events.jsonl"
_open: list["_EventFile"] = []


class _EventFile:
    path: pathlib.Path | None = None


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    """Events inside the block belong to one run. They are dropped until `record_to` says which."""
    mine = _EventFile()
    _open.append(mine)
    try:
        yield
    finally:
        _open.remove(mine)


def record_to(run_dir: pathlib.Path) -> None:
    """The events of the innermost block are those of the run in this directory."""
    if _open:
        _open[-1].path = run_dir / FILE


def record(event: str, **values: Any) -> None:
    """Appends an event, whose `values` are JSON, in one write. Outside a run it does nothing."""
    path = _open[-1].path if _open else None
    if path is None:
        return
    line = json.dumps(redacted({"time": round(time.time(), 3), "event": event, **values})) + "\n"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)

"""What `events.jsonl` of a run says, in words. The file is untrusted: what is malformed or unknown is left out."""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

from launch.report.run_record import number
from maverick_jax.errors import harmless
from maverick_jax.events import FILE

MAX_BYTES = 1 << 20
"""The newest part of the file that is read."""
_LONGEST = 120


def happened(run_dir: pathlib.Path) -> list[tuple[float, str]]:
    """(seconds since 1970, words) of each event, in the order of the file. Checkpoints that were read back intact are
    left out."""
    try:
        with (run_dir / FILE).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - MAX_BYTES))
            texts = file.read().split(b"\n")
    except OSError:
        return []
    found = (_event(text) for text in (texts if size <= MAX_BYTES else texts[1:]))
    return [event for event in found if event is not None]


def _event(text: bytes) -> tuple[float, str] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    say = _SAID.get(line["event"]) if isinstance(line, dict) and isinstance(line.get("event"), str) else None
    time = number(line.get("time")) if say else math.nan
    return (time, say(_Values(line))) if say and math.isfinite(time) else None


class _Values:
    """The values of an event as text that is safe to show."""

    def __init__(self, line: dict[str, Any]):
        self._line = line

    def __getattr__(self, name: str) -> str:
        value = self._line.get(name)
        if isinstance(value, list):
            value = ", ".join(map(str, value[:4]))
        text = f"{value:,}" if type(value) is int else "?" if value is None else str(value)
        text = harmless(text).replace("\n", " ")
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


_SAID: dict[str, Callable[[_Values], str]] = {
    "update_refused": lambda of: f"update {of.step} refused: {of.reason}",
    "rolled_back": lambda of: f"rolled back from step {of.step} to {of.to}",
    "replicas_differ": lambda of: (
        f"step {of.step}: replicas differ, {of.fault} fault, device {of.devices} on {of.hosts}"
    ),
    "hung": lambda of: f"process {of.process} hung: {of.problem}",
    "checkpoint_damaged": lambda of: f"checkpoint of step {of.step} was written damaged: {of.problems}",
    "checkpoint_set_aside": lambda of: f"checkpoint of step {of.step} set aside as {of.name}: {of.problem}",
    "checkpoint_copied": lambda of: f"checkpoint of step {of.step} copied",
    "copy_failed": lambda of: f"checkpoint of step {of.step} could not be copied: {of.problem}",
    "copy_passed_over": lambda of: f"checkpoint of step {of.step} not copied: that of {of.busy} still was",
    "copy_given_up": lambda of: f"the copy of checkpoint {of.step} was given up at the stop",
}

"""Runs a target on example after example, and says which of them ended otherwise than they may.

An example may be taken or refused with a `MaverickError`. Any other exception, a message that harms a terminal, and
more time or memory than the target's limits are findings. Findings with one cause (type and place) are kept once,
with the smallest example seen.
"""

import dataclasses
import faulthandler
import gc
import pathlib
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from maverick_jax.errors import MaverickError

ROUND = 50
"""Examples made from one seed."""
HANGS = 600
"""Seconds after which a process that cannot even be interrupted is ended, with its stack."""
LONGEST_MESSAGE = 20_000
ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that reads foreign data."""

    name: str
    examples: st.SearchStrategy
    read: Callable[[Any], object]
    """Returns, or raises MaverickError; False: the example was refused in a way of its own."""
    seconds: float = 2
    """Processor time of one example."""
    megabytes: int = 512
    """Memory of one example, beyond what the process had before it."""


class TooSlow(BaseException):
    """So that no `except Exception` in between makes it an answer."""


class TooLarge(Exception):
    """More memory than the target's limit."""


class BadMessage(Exception):
    """The message of an error is too long, or holds what a terminal acts on."""


@dataclasses.dataclass
class Report:
    """What a target did."""

    name: str
    taken: int = 0
    refused: int = 0
    seconds: float = 0
    slowest: float = 0
    largest: int = 0
    """Bytes."""
    findings: dict[tuple, tuple[str, str, int]] = dataclasses.field(default_factory=dict)
    """Cause -> traceback, example, seed of its round."""

    @property
    def examples(self) -> int:
        return self.taken + self.refused + len(self.findings)


def fuzz(
    target: Target, seconds: float, seed: int, *, before: Callable[[Any], object] = id, rounds: int = sys.maxsize
) -> Report:
    """Examples of `target` for about `seconds` or `rounds`, one at least; the first is made from `seed`, others
    from what follows it. `before` is told each example before it is read."""
    report, begun = Report(target.name), time.monotonic()
    seeds = random.Random(seed)

    @hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(target.examples)
    def examine(example):
        if time.monotonic() - begun < seconds or not report.examples:  # one at least, however slow the imports were
            before(example)
            _examine(target, example, report, at)

    at = seed
    while time.monotonic() - begun < seconds and (rounds := rounds - 1) >= 0:
        hypothesis.seed(at)(examine)()
        at = seeds.getrandbits(32)
    report.seconds = time.monotonic() - begun
    return report


def _examine(target: Target, example: Any, report: Report, seed: int) -> None:
    before, started = resident("VmRSS", reset=True), time.process_time()
    try:
        outcome = _outcome(target, example)
        spent, memory = time.process_time() - started, resident("VmHWM") - before
        report.slowest, report.largest = max(report.slowest, spent), max(report.largest, memory)
        if spent > target.seconds:
            raise TooSlow(f"{spent:.1f} s")
        if memory > target.megabytes << 20:
            raise TooLarge(f"{memory >> 20} MiB")
        report.taken, report.refused = report.taken + outcome, report.refused + (not outcome)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as found:  # a panic of a library in Rust is no Exception
        cause = (type(found).__name__, *_where(found))
        shown = f"{example!r:.5000}"
        if cause not in report.findings or len(shown) < len(report.findings[cause][1]):
            report.findings[cause] = ("".join(traceback.format_exception(found)), shown, seed)
        gc.collect()


def _outcome(target: Target, example: Any) -> bool:
    """Whether the example was taken."""

    def stop(*_):
        raise TooSlow(f"still running after {4 * target.seconds} s")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 4 * target.seconds)
    faulthandler.dump_traceback_later(HANGS, exit=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return target.read(example) is not False
    except MaverickError as error:
        require_harmless(str(error))
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, previous)


def require_harmless(message: str) -> None:
    if len(message) > LONGEST_MESSAGE:
        raise BadMessage(f"{len(message)} characters: {message[:200]}")
    message.encode("utf-8")
    if bad := [c for c in message if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]:
        raise BadMessage(f"{bad[0]!r} in {message[:500]!r}")


def _where(found: BaseException) -> tuple:
    """The last place in our code that an exception passed."""
    frames = traceback.extract_tb(found.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT)) and "/.venv/" not in f.filename]
    ours = [f for f in ours if "/tests/" not in f.filename] or ours
    return (pathlib.Path(ours[-1].filename).name, ours[-1].name) if ours else ()


def resident(line: str, *, reset: bool = False) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since the mark was reset."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024

"""Runs a target on generated examples and reports findings.

A target may accept an example or refuse it with a `MaverickError`. Any other exception is a finding, and so is a
message with terminal commands, or more time or memory than the target's limits. Findings with the same cause (type and
location) are reported once, with the smallest example.
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
    """Returns, or raises MaverickError. Returns False for an example that it refused in another way."""
    seconds: float = 2
    """Limit of CPU time per example."""
    megabytes: int = 512
    """Limit of additional memory per example."""


class TooSlow(BaseException):
    """A target exceeded its time limit. Not an `Exception`, so that no `except Exception` catches it."""


class TooLarge(Exception):
    """A target exceeded its memory limit."""


class BadMessage(Exception):
    """The message of an error is too long or contains terminal commands."""


@dataclasses.dataclass
class Report:
    """Results of a target."""

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
    """Runs `target` for about `seconds` or for `rounds`, but on at least one example. The first round uses `seed`,
    later rounds the following seeds. `before` is called with each example before the target reads it."""
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
        if time.monotonic() - begun < seconds or not report.examples:  # at least one, even if imports were slow
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
    except BaseException as found:  # a panic of a Rust library is not an Exception
        cause = (type(found).__name__, *_where(found))
        shown = f"{example!r:.5000}"
        if cause not in report.findings or len(shown) < len(report.findings[cause][1]):
            report.findings[cause] = ("".join(traceback.format_exception(found)), shown, seed)
        gc.collect()


def _outcome(target: Target, example: Any) -> bool:
    """Whether the target accepted the example."""

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
    """The innermost location in our code in the exception's traceback."""
    frames = traceback.extract_tb(found.__traceback__)
    ours = [f for f in frames if f.filename.startswith(str(ROOT)) and "/.venv/" not in f.filename]
    ours = [f for f in ours if "/tests/" not in f.filename] or ours
    return (pathlib.Path(ours[-1].filename).name, ours[-1].name) if ours else ()


def resident(line: str, *, reset: bool = False) -> int:
    """Resident bytes of this process: `VmRSS` is the current value, `VmHWM` the maximum since the last reset."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024

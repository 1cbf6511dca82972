"""A job of several processes on this machine: started, watched, and started again where that helps.

One thread reads the outputs of all processes, passes signals on and notices ends. The coordinator of the job listens on
loopback.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from launch.clusters.exit_codes import (
    NEVER,
    RESTART,
    SUSPECTED_HARDWARE,
    Preempted,
    job_code,
    process_code,
    reason,
)

log = logging.getLogger(__name__)

_TICK = 0.2
_MAX_LINE = 1 << 16
_NUMBERED = re.compile(rb"^(?:[A-Z] )?\[\d+\] ")
# A process that outlived its supervisor would hold the run and go on: on Linux the kernel ends it (PR_SET_PDEATHSIG).
_TIED = (
    "import ctypes, os, signal, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "    if os.getppid() != int(sys.argv[1]): sys.exit(76)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclasses.dataclass(frozen=True)
class Restarts:
    """When a job is started again, and when no more."""

    budget: int = 50
    """Maximum number of restarts."""
    crash_loop: int = 3
    """Starts in a row that end without progress, after which no other one is made."""
    first_delay: float = 1.0
    """Seconds before a restart; doubled after each one without progress."""
    longest_delay: float = 300.0


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds that the other processes have to end by themselves once one has ended, before they are killed."""

    after_failure: float = 30.0
    """They have lost a peer and know it: time to name it, and to write down where they were."""
    after_save: float = 300.0
    """They are saving the same step, or finishing."""


@dataclasses.dataclass
class LocalProcess:
    """One process of a job, with what it has written since its last whole line."""

    number: int
    process: subprocess.Popen
    rest: bytes = b""
    killed: bool = False
    """By the supervisor, after another process had ended."""


class LocalJob:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], count: int, environment: Callable[[int], Mapping[str, str]], out: IO):
        self._out, self._selector = out, selectors.DefaultSelector()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        self.processes: list[LocalProcess] = []
        for number in range(count):
            job = {"MAVERICK_COORDINATOR": coordinator, "MAVERICK_NUM_PROCESSES": str(count)}
            tied = [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]
            process = subprocess.Popen(
                tied, env={**os.environ, **environment(number), **job, "MAVERICK_PROCESS_ID": str(number)},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.processes.append(LocalProcess(number, process))
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            self._selector.register(process.stdout, selectors.EVENT_READ, self.processes[-1])

    def send(self, number: int) -> None:
        """Sends a signal to every process that is left."""
        for one in self.processes:
            if one.process.poll() is None:
                one.process.send_signal(number)

    def finish(self, patience: Patience) -> list[int]:
        """Waits for all processes, copying their lines. Returns the codes that count, in order."""
        ended, deadline = 0, float("inf")
        while True:
            self._copy(_TICK)
            codes = [one.process.poll() for one in self.processes]
            left = [one for one, code in zip(self.processes, codes, strict=True) if code is None]
            if len(codes) - len(left) > ended:
                ended = len(codes) - len(left)
                failed = any(code not in (None, 0, Preempted.exit_code) for code in codes)
                given = patience.after_failure if failed else patience.after_save
                deadline = min(deadline, time.monotonic() + given)
            if not left:
                break
            if time.monotonic() > deadline:
                for one in left:
                    log.warning("process %d has not ended since another one did; it is killed", one.number)
                    one.killed = True
                    one.process.kill()
                deadline = float("inf")
        self._copy(0.0)
        for one in self.processes:
            self._end_of(one)
        self._selector.close()
        return [self._code(one) for one in self.processes]

    def kill(self) -> None:
        """Ends what is left, at once."""
        for one in self.processes:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()
            if one.process.stdout is not None:
                one.process.stdout.close()

    def _code(self, one: LocalProcess) -> int:
        code = one.process.returncode
        if one.killed or process_code(code) == code:
            return process_code(code)
        number = -code if code < 0 else code - 128
        if number == signal.SIGABRT:
            log.warning("process %d aborted, as after the death of another process", one.number)
        else:
            log.warning("process %d was killed (signal %d)", one.number, number)
        return process_code(code)

    def _copy(self, timeout: float) -> None:
        """Copies what the processes have written, in whole lines. Waits at most `timeout` seconds for the first."""
        if not self._selector.get_map():
            time.sleep(timeout)
            return
        for key, _ in self._selector.select(timeout):
            one: LocalProcess = key.data
            while chunk := _read(one.process.stdout):
                *lines, one.rest = (one.rest + chunk).split(b"\n")
                self._write(one, lines)
                if len(one.rest) > _MAX_LINE:
                    self._write(one, [one.rest])
                    one.rest = b""
            if chunk == b"":
                self._end_of(one)

    def _end_of(self, one: LocalProcess) -> None:
        if one.process.stdout is None or one.process.stdout.closed:
            return
        self._selector.unregister(one.process.stdout)
        one.process.stdout.close()
        if one.rest:
            self._write(one, [one.rest])
            one.rest = b""

    def _write(self, one: LocalProcess, lines: list[bytes]) -> None:
        """Lines get the number of their process, except those of logs and progress, which have it."""
        for line in lines:
            prefix = b"" if len(self.processes) == 1 or _NUMBERED.match(line) else b"[%d] " % one.number
            self._out.write((prefix + line).decode("utf-8", "replace") + "\n")
        self._out.flush()


def _read(stream: IO[bytes] | None) -> bytes | None:
    """Bytes; empty at the end of the stream; None if there are none now."""
    assert stream is not None
    try:
        return os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return None


# ---- starting again --------------------------------------------------------------------------------------------------


def progress(run_dir: pathlib.Path) -> int:
    """How far a run has come: the highest step among its checkpoints and metrics; -1 if there is nothing."""
    steps = [int(path.name) for path in (run_dir / "checkpoints").glob("*") if path.name.isdigit()]
    with contextlib.suppress(OSError):
        for line in (run_dir / "metrics.jsonl").read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                read = json.loads(line)
                if isinstance(read, dict) and isinstance(step := read.get("step"), int):
                    steps.append(step)
    return max(steps, default=-1)


@dataclasses.dataclass
class RestartRule:
    """After each start: how long to wait for the next one, or why there is none."""

    restarts: Restarts
    run_dir: pathlib.Path
    made: int = 0
    in_vain: int = 0
    reached: int = -1

    def __post_init__(self):
        self.reached = progress(self.run_dir)

    def after(self, code: int) -> float | str:
        """Seconds to wait before the next start, or why another one would not help."""
        if code == SUSPECTED_HARDWARE:
            return "this machine may compute wrong results: check it, and go on with the run on another one"
        if code in NEVER or code not in RESTART:
            return "a restart cannot help"
        reached = progress(self.run_dir)
        self.in_vain = 0 if reached > self.reached else self.in_vain + 1
        self.reached = max(reached, self.reached)
        where = f"step {self.reached}" if self.reached >= 0 else "its first step"
        if self.in_vain >= self.restarts.crash_loop:
            return (
                f"crash loop: {self.in_vain} starts in a row ended without progress: neither checkpoints nor metrics "
                f"in {self.run_dir} went past {where}. Look at what the processes said, then start it again"
            )
        if self.made >= self.restarts.budget:
            return f"the maximum of {self.restarts.budget} restarts is reached; the same command goes on from {where}"
        self.made += 1
        return min(self.restarts.first_delay * 2**self.in_vain, self.restarts.longest_delay)


def supervise(
    command: Sequence[str],
    count: int,
    run_dir: pathlib.Path,
    restarts: Restarts | None = None,
    environment: Callable[[int], Mapping[str, str]] = lambda number: {},
    patience: Patience = Patience(),
    out: IO | None = None,
) -> int:
    """Runs a job of `count` processes to its end and returns its exit code. SIGTERM and SIGINT go to all processes, and
    no restart follows.

    environment: more environment variables of a process, by its number.
    restarts: None: the job is started once.
    """
    rule = None if restarts is None else RestartRule(restarts, run_dir)
    with _forwarding() as forward:
        while True:
            job = LocalJob(command, count, environment, out or sys.stdout)
            try:
                forward.to = job
                if forward.got:
                    job.send(forward.got)
                code = job_code(job.finish(patience))
            finally:
                forward.to = None
                job.kill()
            if code == 0 or rule is None or forward.got:
                return code
            found = rule.after(code)
            if isinstance(found, str):
                log.error("the job ended with exit code %d (%s): %s", code, reason(code), found)
                return code
            log.warning("the job ended with exit code %d (%s); restart %d of %d in %.0f s", code, reason(code),
                        rule.made, rule.restarts.budget, found)  # fmt: skip
            if forward.waits(found):
                return code


class _Forward:
    """Passes signals on to the job that is running."""

    def __init__(self):
        self.to: LocalJob | None = None
        self.got: int = 0

    def __call__(self, number: int, frame: object) -> None:
        self.got = number
        if self.to is not None:
            self.to.send(number)

    def waits(self, seconds: float) -> bool:
        """Waits; True if a signal came meanwhile."""
        end = time.monotonic() + seconds
        while not self.got and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))
        return bool(self.got)


@contextlib.contextmanager
def _forwarding() -> Iterator[_Forward]:
    forward = _Forward()
    former = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield forward
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

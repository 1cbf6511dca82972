"""Gives the verdict of tests on a program."""

import contextlib
import functools
import json
import os
import secrets
import selectors
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from data.sandbox.bubblewrap import SandboxLimits, Streams, resident_bytes, started
from maverick_jax.errors import InputError

MAX_VERDICT = 1 << 16
PATIENCE = 60
"""Seconds for the first sandbox of a process, which finds out whether sandboxes work at all."""
WATCH_SECONDS = 0.1
DEFAULT = SandboxLimits()


class Verdict(NamedTuple):
    passed: bool
    reason: str
    """Why it did not pass; empty if it did."""


class ProgramTests(NamedTuple):
    """ProgramTests of a program, as the text of a Python module that raises if one fails."""

    text: str
    functions: Mapping[str, str]
    """Names in the tests -> names of the program's functions that they call."""
    must_have: Sequence[str] = ()
    """Names that the program has to define."""


def check(program: str, tests: ProgramTests, limits: SandboxLimits = DEFAULT) -> Verdict:
    """Runs `program`, the text of a Python module, and then the tests. Everything in the sandboxes has ended when it
    returns, at most `limits.seconds` after the start. Raises InputError where there can be no sandbox."""
    require()
    return _check(program, tests, limits)


def _check(program: str, tests: ProgramTests, limits: SandboxLimits) -> Verdict:
    deadline = time.monotonic() + limits.seconds
    nonce = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        calls, answers = _pipe(stack), _pipe(stack)
        ours = {"program_text.py": program}
        judges = {"tests_text.py": tests.text}
        asked = stack.enter_context(started("program.py", ours, [calls.read, answers.write], limits))
        errors = stack.enter_context(open(os.memfd_create("errors"), "w+b"))
        streams = Streams(subprocess.PIPE, subprocess.PIPE, errors.fileno())
        judge = stack.enter_context(started("judge.py", judges, [calls.write, answers.read], limits, streams))
        for pipe in (calls, answers):
            pipe.close()
        watch = stack.enter_context(_watched([asked, judge], limits))
        wanted = {"functions": dict(tests.functions), "must_have": list(tests.must_have)}
        assert judge.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            judge.stdin.write(f"{nonce}\n{json.dumps(wanted)}\n".encode())
            judge.stdin.close()
        said = _read(judge, deadline)
        errors.seek(0)
        error = errors.read(MAX_VERDICT).decode(errors="replace").strip().rpartition("\n")[2][:300]
    return _verdict(said, nonce, limits, bool(watch), error)


class _Pipe(NamedTuple):
    read: int
    write: int

    def close(self) -> None:
        for descriptor in self:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _pipe(stack: contextlib.ExitStack) -> _Pipe:
    pipe = _Pipe(*os.pipe())
    closing = {"open": True}

    def close() -> None:
        if closing.pop("open", False):
            _Pipe.close(pipe)

    stack.callback(close)
    return pipe


@contextlib.contextmanager
def _watched(processes: Sequence[subprocess.Popen], limits: SandboxLimits) -> Iterator[list[int]]:
    """Kills a sandbox whose memory exceeds the limit; the list then has its size. Limits of a process do not bound
    what many processes use together."""
    ended, exceeded = threading.Event(), list[int]()

    def watch() -> None:
        while not ended.wait(WATCH_SECONDS):
            for process in processes:
                if (used := resident_bytes(process.pid)) > limits.memory:
                    exceeded.append(used)
                    process.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield exceeded
    finally:
        ended.set()
        thread.join()


def _read(judge: subprocess.Popen, deadline: float) -> bytes | None:
    """What the judge writes until it ends; None after the deadline."""
    assert judge.stdout is not None
    found = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(judge.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(judge.stdout.fileno(), MAX_VERDICT)
                found += part
                if not part or len(found) > MAX_VERDICT:
                    return bytes(found)
    return None


def _verdict(said: bytes | None, nonce: str, limits: SandboxLimits, too_large: bool, error: str) -> Verdict:
    if too_large:
        return Verdict(False, f"used more than {limits.memory:,} bytes of memory")
    if said is None:
        return Verdict(False, f"was not over after {limits.seconds} s")
    try:
        found = json.loads(said)
        if found["nonce"] == nonce and isinstance(found["passed"], bool):
            return Verdict(found["passed"], str(found["problem"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return Verdict(False, f"the tests ended without a verdict{f': {error}' if error else ''}")


# ---- whether sandboxes work here -------------------------------------------------------------------------------------

_PROBE = """
import os, socket

def attempt(action):
    try:
        action()
        return "done"
    except BaseException as error:
        return type(error).__name__

def probe():
    write = lambda path: open(path, "w").write("x")
    return {
        "network": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
        "host": attempt(lambda: open("/etc/passwd").read()),
        "root": attempt(lambda: write("/probe")),
        "usr": attempt(lambda: write("/usr/probe")),
        "shared memory": attempt(lambda: write("/dev/shm/probe")),
        "own folder": attempt(lambda: write("/tmp/probe")),
        "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
        "root user": os.getuid() == 0,
    }
"""
_WALLS = """
found = probe()
done = sorted(name for name, value in found.items() if value == "done")
assert done == ["own folder"], f"a program can reach: {done}"
assert found["processes"] <= 4, "a program sees other processes"
assert not found["root user"], "a program runs as root"
"""


@functools.cache
def _problem() -> str:
    """Why there can be no sandbox on this machine; empty if there can."""
    limits = SandboxLimits(seconds=PATIENCE)
    tests = ProgramTests(_WALLS, {"probe": "probe"}, ["probe"])
    verdict = _check(_PROBE, tests, limits)
    if verdict.passed and _check(_PROBE, tests._replace(text="assert probe() == 1"), limits).passed:
        return "a test that must fail passes"
    return verdict.reason


def require() -> None:
    """Raises InputError unless sandboxes work on this machine: a program in one reaches no network, no files of the
    machine and no other processes."""
    if problem := _problem():
        raise InputError(f"no sandbox for programs: {problem}; expected bubblewrap with user namespaces")

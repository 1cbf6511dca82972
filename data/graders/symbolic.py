"""Symbolic equality of LaTeX expressions by math-verify (extra `eval`), in a process of its own with limits of time and
memory, which is started again after an expression that was too much for it."""

import importlib.util
import json
import re
import selectors
import subprocess
import sys
import threading
import time

from maverick_jax.errors import InputError

SECONDS, START_SECONDS = 5.0, 120.0
"""Longest comparison, and longest start of the process."""
MAX_NESTING, MAX_DIGITS = 24, 60
"""Deepest brackets, and longest run of digits, of an expression that is compared."""
MAX_LENGTH = 1_000


def require() -> None:
    """Raises InputError if math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("symbolic equality needs math-verify, of the extra `eval`: pip install 'maverick-jax[eval]'")


def difference(reference: str, answer: str) -> str:
    """Empty if two LaTeX expressions are equal, `differs` if they are not, or why they cannot be compared. Raises
    InputError if math-verify is not installed."""
    for text in (reference, answer):
        if problem := too_much(text):
            return problem
    require()
    with _lock:
        return _worker.ask(reference, answer)


def too_much(text: str) -> str:
    """Why an expression is not parsed at all; empty if it is."""
    if len(text) > MAX_LENGTH:
        return f"longer than {MAX_LENGTH:,} characters"
    if re.search(rf"\d{{{MAX_DIGITS + 1}}}", text):
        return f"a number of more than {MAX_DIGITS} digits"
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth > MAX_NESTING:
            return f"brackets nested deeper than {MAX_NESTING}"
    if re.search(r"\^\s*\{?\s*\d{4,}", text) or text.count("^") > 20 or text.count("!") > 3:
        return "powers that are too large"
    return ""


class _Worker:
    """The process, which is started when it is first needed."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def ask(self, reference: str, answer: str) -> str:
        process = self.process if self.process is not None and self.process.poll() is None else self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
            process.stdin.flush()
            said = self._line(process, SECONDS)
        except (OSError, TimeoutError, EOFError):
            self._stop()
            return "the comparison was too much"
        return "" if said == "equal" else "differs" if said == "differs" else said[:100]

    def _start(self) -> subprocess.Popen:
        self._stop()
        command = [sys.executable, "-m", "data.graders.symbolic_worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self._line(self.process, START_SECONDS)
        except (TimeoutError, EOFError):
            self._stop()
            raise InputError("math-verify does not start; expected the versions of the extra `eval`") from None
        return self.process

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _line(self, process: subprocess.Popen, seconds: float) -> str:
        assert process.stdout is not None
        deadline, found = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                if not (part := process.stdout.read1(1 << 16)):  # pyright: ignore[reportAttributeAccessIssue]
                    raise EOFError
                found += part
        return json.loads(found)


_worker, _lock = _Worker(), threading.Lock()

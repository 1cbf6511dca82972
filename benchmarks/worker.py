"""Run measured programs in separate worker processes that handle one request at a time.

So their memory is measured separately, they share no threads or caches, and the program that is not being timed waits
for input. Requests and answers are JSON objects, one per line.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from maverick_jax.errors import InputError, MaverickError

ROOT = pathlib.Path(__file__).resolve().parent.parent
SETTLE_SECONDS = 0.3


class WorkerFailed(MaverickError):
    """A measured program ended early."""


def take_cpus(count: int) -> None:
    """Restrict this process and its children to `count` processors. Raises InputError if there are fewer."""
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(available):
        raise InputError(f"--threads {count}: expected 1 to {len(available)}, the processors this process may use")
    os.sched_setaffinity(0, available[:count])


def environment(**more: str) -> dict[str, str]:
    """Environment variables for a measured program: those of this process without the compilation cache, which would
    hide compile time."""
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    return kept | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"} | more


class Worker:
    """A running worker. `ready`: its first answer; `start_seconds`: time from starting the process to that answer."""

    def __init__(self, module: str, arguments: Sequence[str]):
        self.module = module
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT)),
            text=True,
        )
        self.ready = self._answer()
        self.start_seconds = time.perf_counter() - began

    def ask(self, request: str) -> dict[str, Any]:
        """The worker's answer to a request, sent after a pause in which other activity settles."""
        time.sleep(SETTLE_SECONDS)
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; reading the answer reports it
            self._process.stdin.write(json.dumps({"do": request}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._close()
            reason = "was killed, probably out of memory" if code == -9 else f"ended with code {code}"
            raise WorkerFailed(f"{self.module} {reason}; its output is above")
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _close(self) -> None:
        """Close the worker's input, which ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


def serve(start: Callable[[], tuple[dict[str, Any], dict[str, Callable[[], dict[str, Any]]]]]) -> None:
    """The worker's side: `start()` returns the first answer and a function per request. Returns when the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with answers

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    ready, requests = start()
    answer(ready)
    for line in sys.stdin:
        answer(requests[json.loads(line)["do"]]())

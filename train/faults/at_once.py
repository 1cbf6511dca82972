"""Ends a process at a signal although its main thread is in native code.

Python runs a signal's handler between two bytecodes of the main thread. While XLA compiles, that is minutes away. And
an exception in the middle of lowering leaves objects of the compiler behind that crash when they are freed. So before
the first step, when there is nothing to save, a thread ends the process, and nothing is unwound.
"""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from maverick_jax.errors import INTERRUPTED, Preempted

ENDINGS = {signal.SIGINT: (INTERRUPTED, "interrupted"), signal.SIGTERM: (Preempted.exit_code, "stopped as asked")}
"""Exit code and message of each signal."""
REASONS = {INTERRUPTED: KeyboardInterrupt.__name__, Preempted.exit_code: Preempted.__name__}
"""What the record of wall time says of each exit code."""
SHOW_CURSOR = "\x1b[?25h"
_ACTION_BYTES = 1024
"""More than the size of C's `struct sigaction` anywhere."""

NOTHING_LOST = "the first step was not reached, nothing is lost; the same command starts again"
"""The message of a process that ends before its first step."""


@contextlib.contextmanager
def leaves_at_once(what: str) -> Iterator[None]:
    """While this is open, SIGINT ends the process with 130 and SIGTERM with 75, at once. `what`: what the message says
    about it. The former handlers are back afterwards, also those of C. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.ExitStack() as stack:
        for number in ENDINGS:
            stack.enter_context(_handled(number))
        former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reader, what), name="signals before the first step", daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            os.close(writer)  # the thread reads the end of the pipe, and ends


def leave_now(code: int, message: str) -> NoReturn:
    """Ends the process without freeing anything. Child processes that would outlive it are ended first."""
    print(message, file=sys.stderr)
    if sys.__stderr__ and sys.__stderr__.isatty():
        sys.__stderr__.write(SHOW_CURSOR)  # a live bar has hidden it
    if processes := sys.modules.get("multiprocessing"):
        for child in processes.active_children():
            child.terminate()
    if timeline := sys.modules.get("train.goodput.timeline"):  # loaded if a run may be recorded
        timeline.leaving(REASONS.get(code, f"exit {code}"))
    if lease := sys.modules.get("maverick_jax.checkpoint.lease"):  # loaded if a run directory may be held
        lease.release_all()
    logging.shutdown()
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _watch(reader: int, what: str) -> None:
    """Acts on the numbers of signals that the interpreter writes to the pipe the moment they arrive."""
    with os.fdopen(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in ENDINGS:
                code, message = ENDINGS[signal.Signals(number[0])]
                leave_now(code, f"{message}: {what}")


@contextlib.contextmanager
def _handled(number: int) -> Iterator[None]:
    """The signal has a handler of Python's, which does nothing: without one it would not be written to the pipe."""
    libc = ctypes.CDLL(None)
    native = ctypes.create_string_buffer(_ACTION_BYTES)
    libc.sigaction(int(number), None, native)
    former = signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        if former is not None:
            signal.signal(number, former)
        libc.sigaction(int(number), native, None)  # JAX's own, in a job of several processes

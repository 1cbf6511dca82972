"""Ends a process at a signal, at once, where there is nothing to save.

An exception in the middle of lowering leaves objects of the compiler behind that crash when they are freed. So before
the first step a thread ends the process (`signals.py`), and nothing is unwound.
"""

import contextlib
import logging
import os
import signal
import sys
from typing import NoReturn

from maverick_jax.errors import INTERRUPTED, Preempted
from train.faults.signals import answers

ENDINGS = {signal.SIGINT: (INTERRUPTED, "interrupted"), signal.SIGTERM: (Preempted.exit_code, "stopped as asked")}
"""Exit code and message of each signal."""
REASONS = {INTERRUPTED: KeyboardInterrupt.__name__, Preempted.exit_code: Preempted.__name__}
"""What the record of wall time says of each exit code."""
SHOW_CURSOR = "\x1b[?25h"
NOTHING_LOST = "the first step was not reached, nothing is lost; the same command starts again"
"""The message of a process that ends before its first step."""
SAVED_STAYS = "what was saved stays; the same command goes on from there"
"""The same after its first step."""


def leaves_at_once(what: str) -> contextlib.AbstractContextManager[None]:
    """While this is open, SIGINT ends the process with 130 and SIGTERM with 75, at once. `what`: what the message says
    about it. See `signals.answers`."""
    return answers(lambda number: leave_at(number, what))


def leave_at(number: int, what: str) -> NoReturn:
    """Ends the process because of a signal, and tells the others of its job."""
    code, message = ENDINGS[signal.Signals(number)]
    if processes := sys.modules.get("train.faults.processes"):  # loaded if there may be others
        processes.stops_all()
    leave_now(code, f"{message}: {what}")


def leave_now(code: int, message: str) -> NoReturn:
    """Ends the process without freeing anything. Child processes that would outlive it are ended first."""
    print(message, file=sys.stderr)
    if processes := sys.modules.get("multiprocessing"):
        for child in processes.active_children():
            child.terminate()
    if timeline := sys.modules.get("train.goodput.timeline"):  # loaded if a run may be recorded
        timeline.leaving(REASONS.get(code, f"exit {code}"))
    if lease := sys.modules.get("maverick_jax.checkpoint.lease"):  # loaded if a run directory may be held
        lease.release_all()
    logging.shutdown()
    if sys.__stderr__ and sys.__stderr__.isatty():
        sys.__stderr__.write(SHOW_CURSOR)  # a live bar has hidden it
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stderr__)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)

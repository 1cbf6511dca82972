"""What the command shows besides results, without secrets: log lines and tracebacks of bugs. Closed outputs."""

import logging
import os
import sys
import traceback
import types

from maverick_jax.settings.redaction import redact


class Lines(logging.StreamHandler):
    """Writes to standard error as it is at the moment: a live bar takes its place, and puts lines above itself."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def show_bug(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """The traceback of a bug, without secrets."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def discard_closed_outputs() -> None:
    """Flushes the outputs and points closed ones to nowhere, so that flushing them at the end is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


def quiet_runtime() -> None:
    """XLA reports a compilation of more than two minutes as an error, and asks for a bug report. Ours says how long it
    takes, so that such lines are left out, if `TF_CPP_MIN_LOG_LEVEL` does not say otherwise. In a job of several
    processes they stay, because there some name the cause of a failure."""
    if "MAVERICK_COORDINATOR" not in os.environ:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

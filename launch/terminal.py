"""What the command shows on standard error besides results: log lines, and tracebacks of bugs, both without secrets."""

import logging
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

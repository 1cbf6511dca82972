"""Writes down where the threads of a process are, before it ends."""

import contextlib
import faulthandler
import os
import pathlib

_STDERR = 2


def write_stacks(message: str, path: pathlib.Path | None) -> None:
    """The message and the stacks of all threads, to `path` and to stderr. Needs no lock of Python's."""
    with contextlib.suppress(OSError):  # a full disk, or no run directory yet
        if path is not None:
            with path.open("w") as file:
                file.write(message)
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
    os.write(_STDERR, message.encode())
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)

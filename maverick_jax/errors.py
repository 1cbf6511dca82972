"""Errors that a user can act on, each with the exit code of the process.

The message names the file, line or key, states what was expected and, if there is one, the nearest valid choice. Any
other exception that escapes is a bug and shows its traceback.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from maverick_jax.settings.redaction import redact

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""
HUNG = 77
"""Exit code of a process that the watchdog ends."""
MAX_MESSAGE = 16_000
"""Longest message that is shown in full, in characters."""
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that control a terminal, and surrogates, which cannot be written as UTF-8."""


def harmless(text: str) -> str:
    """`text` with control characters escaped, so that it is safe to show in a terminal; line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class MaverickError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, shortened, without secrets, and safe to print, since it may quote hostile data."""
        text = redact(super().__str__())
        if len(text) > MAX_MESSAGE:
            text = f"{text[:MAX_MESSAGE]}... ({len(text):,} characters)"
        return harmless(text)


class CheckFailed(MaverickError):
    """The requested check (plan, doctor) failed."""

    exit_code = 1


class DiskFailed(MaverickError):
    """A file could not be written, because the disk is full or read-only; what was saved before stays."""

    exit_code = 1


@contextlib.contextmanager
def disk_failures(path: str | os.PathLike = "") -> Iterator[None]:
    """Turns the errors of a disk that is full or read-only inside the block into DiskFailed. path: what the block
    writes, for errors that do not say it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename or path}: ".removeprefix(": ")
        raise DiskFailed(
            f"{where}cannot be written: {os.strerror(error.errno)}. Make room; what was saved stays, and the same "
            "command goes on from there"
        ) from error


class Preempted(MaverickError):
    """The run was asked to stop, and has saved a checkpoint if it could; restart it."""

    exit_code = 75


class RunInUse(MaverickError):
    """Another job writes to the run's directory; nothing was changed. Try again when that job has ended."""

    exit_code = 75


class PeerFailed(MaverickError):
    """Another process of the job failed; restart the job."""

    exit_code = 76


class InputError(MaverickError):
    """A bad config, file or argument; restarting does not help."""

    exit_code = 78


class QueueFull(MaverickError):
    """An engine has as many waiting requests as it takes. Ask again later."""

    exit_code = 75


class NonFiniteBudgetSpent(MaverickError):
    """Too many updates were skipped because the loss or the gradients were not finite or a spike."""

    exit_code = 79


class SilentCorruption(MaverickError):
    """Devices that should hold the same parameters do not; take the named host out before going on."""

    exit_code = 80


class NoRestorableCheckpoint(MaverickError):
    """Checkpoints exist, but none passes verification."""

    exit_code = 81

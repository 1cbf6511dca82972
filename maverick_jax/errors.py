"""Errors a user can act on, each with the exit code its process ends with.

Raise one of these with a message that names the file, line or key, says what was expected and, where
there is one, the nearest valid choice. Anything else that escapes is a bug and shows its traceback.
"""

import re

MAX_MESSAGE = 16_000
"""Characters of a message that are shown."""
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal acts on, and what cannot be written as UTF-8."""


def harmless(text: str) -> str:
    """`text` that a terminal shows and does not act on; line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class MaverickError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, safe to print: it may quote data that was made to harm."""
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[:MAX_MESSAGE]}... ({len(text):,} characters)"
        return harmless(text)


class CheckFailed(MaverickError):
    """The check that was asked for (plan, doctor) came out negative."""

    exit_code = 1


class Preempted(MaverickError):
    """The run was asked to stop and saved first: start it again."""

    exit_code = 75


class PeerFailed(MaverickError):
    """Another process of the job failed: start the job again."""

    exit_code = 76


class InputError(MaverickError):
    """A bad config, file or argument: starting again cannot help."""

    exit_code = 78


class NonFiniteBudgetSpent(MaverickError):
    """Too many updates were refused because loss or gradients were not finite."""

    exit_code = 79


class NoRestorableCheckpoint(MaverickError):
    """Checkpoints exist, but none of them verifies."""

    exit_code = 81

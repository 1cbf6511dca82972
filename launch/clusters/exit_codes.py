"""What a launcher does after a job's exit code. Every launcher has its rule from here."""

from collections.abc import Iterable

from maverick_jax.errors import (
    HUNG,
    INTERRUPTED,
    InputError,
    NonFiniteBudgetSpent,
    NoRestorableCheckpoint,
    PeerFailed,
    Preempted,
    SilentCorruption,
)

BUG = 1
SUSPECTED_HARDWARE = SilentCorruption.exit_code
RESTART = (Preempted.exit_code, PeerFailed.exit_code, HUNG)
"""The same job is started again, as often as its budget allows."""
NEVER = {
    BUG: "a bug, or a check that failed",
    InputError.exit_code: "a bad config, file or argument",
    NonFiniteBudgetSpent.exit_code: "too many updates that were not finite",
    NoRestorableCheckpoint.exit_code: "no checkpoint can be restored",
    INTERRUPTED: "interrupted",
}
"""A restart cannot help. Codes that are in no list count as these."""
REASONS = {
    Preempted.exit_code: "preempted, or the run is in use by another job",
    PeerFailed.exit_code: "a process failed",
    HUNG: "no progress for too long",
    SUSPECTED_HARDWARE: "suspected silent data corruption",
    **NEVER,
}
SIGNALS = (6, 7, 9, 11, 15)
"""Signals that end a process from outside or with a crash: SIGABRT, SIGBUS, SIGKILL, SIGSEGV, SIGTERM."""


def process_code(returncode: int) -> int:
    """The code that counts for a process: one that a signal ended (negative in Python, 128 + signal in a shell) counts
    as 76, because JAX aborts a process that has lost another, and a killed one can be started again."""
    if returncode < 0 or returncode - 128 in SIGNALS:
        return PeerFailed.exit_code
    return returncode


def job_code(codes: Iterable[int]) -> int:
    """The exit code of a job from those of its processes: 1 if any ended with a bug, else the highest, because the
    process that failed first has a higher code than those that lost it (76)."""
    found = list(codes)
    return BUG if BUG in found else max(found)


def reason(code: int) -> str:
    """What an exit code means, in a few words."""
    return REASONS.get(code, "unknown")

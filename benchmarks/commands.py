"""The program's commands, as benchmarks start them, and the processor time that these took."""

import resource
import subprocess
import sys

from benchmarks.worker import WorkerFailed


def maverick(*words: str) -> str:
    """What `maverick WORDS` writes to standard output. Raises WorkerFailed if it ends with an error."""
    done = subprocess.run([sys.executable, "-m", "launch.cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise WorkerFailed(f"maverick {' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


def children_seconds() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime

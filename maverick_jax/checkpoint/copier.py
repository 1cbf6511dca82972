"""Copies checkpoints to the persistent tier in the background, one at a time, on process 0.

While one is copied, others that become due are passed over, and said to be; the checkpoint that is being copied is not
deleted meanwhile. A copy that fails is tried again with the next checkpoint.
"""

import logging
import pathlib
import threading
import time
from collections.abc import Callable

from maverick_jax import events
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.checkpoint.copies import Copies
from maverick_jax.errors import MaverickError, RunInUse

log = logging.getLogger(__name__)


class CopyFailed(MaverickError):
    """A checkpoint is saved in the run directory, and could not be copied. The same command copies it."""

    exit_code = 75


class Copier:
    """The copying of one store's checkpoints."""

    def __init__(self, copies: Copies, path_of: Callable[[int], pathlib.Path]):
        """Takes the lease on the place and removes what was not finished there. Raises RunInUse if another job has it,
        StoreUnreachable if it does not answer."""
        self._copies, self._path_of = copies, path_of
        copies.take_lease()
        copies.tidy()
        self._newest = max(copies.steps(), default=None)
        self._problem: MaverickError | None = None
        self._thread: threading.Thread | None = None
        self._step: int | None = None

    @property
    def busy(self) -> int | None:
        """The step that is being copied."""
        return self._step if self._thread is not None and self._thread.is_alive() else None

    def offer(self, step: int) -> None:
        """Begins to copy the checkpoint of `step`, which is intact, if it is due."""
        if self._newest is not None and self._newest <= step < self._newest + self._copies.config.every:
            return
        if self.busy is not None:
            log.warning("checkpoint %d is not copied: the copy of %d is still going on", step, self._step)
            events.record("copy_passed_over", step=step, busy=self._step)
            return
        self._begin(step)

    def require_held(self) -> None:
        """Raises RunInUse if the last copy found that another job has taken over."""
        if isinstance(self._problem, RunInUse):
            raise self._problem

    def forget_after(self, step: int) -> None:
        """Deletes the copies of later steps."""
        self._join(None)
        self._copies.delete_after(step)
        self._newest = max(self._copies.steps(), default=None)

    def finish(self, step: int | None, seconds: float | None) -> None:
        """Waits for what is going on, and for the copy of `step`, the newest checkpoint, unless there is one. seconds:
        the longest time to wait, after which the copy is given up; None: as long as it takes. Raises CopyFailed."""
        until = None if seconds is None else time.monotonic() + seconds
        left = lambda: None if until is None else max(0.0, until - time.monotonic())
        ended = self._join(left())
        if ended and step is not None and step != self._newest:
            self._begin(step)
            ended = self._join(left())
        if not ended:
            log.warning(
                "the copy of checkpoint %s is given up: the run was asked to stop; it is saved here", self._step
            )
            events.record("copy_given_up", step=self._step)
        elif self._problem is not None and step is not None and step != self._newest:
            raise CopyFailed(f"checkpoint {self._path_of(step)} is saved, but not copied: {self._problem}")

    def _join(self, seconds: float | None) -> bool:
        if self._thread is not None:
            self._thread.join(seconds)
        return self.busy is None

    def _begin(self, step: int) -> None:
        self._problem, self._step = None, step
        self._thread = threading.Thread(target=self._copy, args=(step,), name="copy", daemon=True)
        self._thread.start()

    def _copy(self, step: int) -> None:
        began = time.monotonic()
        try:
            size = self._copies.put(step, self._path_of(step))
            seconds = time.monotonic() - began
            self._newest = step
            events.record("checkpoint_copied", step=step, bytes=size, seconds=round(seconds, 3))
            log.info("copied checkpoint %d to %s (%s bytes, %.1f s)", step, self._copies.place, f"{size:,}", seconds)
            self._copies.tidy()
        except (MaverickError, Damaged, OSError) as error:
            self._problem = error if isinstance(error, MaverickError) else CopyFailed(str(error))
            events.record("copy_failed", step=step, problem=str(error)[:500])
            log.error("checkpoint %d could not be copied: %s", step, error)

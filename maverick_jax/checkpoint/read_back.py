"""Reads each checkpoint back after it was written, in the background, and compares it with what the devices held.

A restore verifies what it reads anyway. Reading back finds a write that went wrong while the state is still in memory
and before an older checkpoint is deleted. Its cost is bounded: one thread per process, which reads its share of the
arrays block by block and ends where it stands when the next save begins. The system's cache is asked to forget the
files first, so that the disk is read.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

import jax

from maverick_jax import events
from maverick_jax.checkpoint import contents
from maverick_jax.checkpoint.contents import Damaged
from maverick_jax.coordinator import publish, published

log = logging.getLogger(__name__)

_POLL = 0.1
PATIENCE = 60.0
"""Seconds that process 0 waits for the results of the others once the next save has begun."""
_saves = itertools.count()
"""Numbers the saves of this process. All processes of a job save in the same order."""


class Response(Protocol):
    """A save in the background."""

    def result(self) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found; of a job of several processes, on process 0, by all."""

    problems: tuple[str, ...] = ()
    read: int = 0
    """Bytes of arrays that were read."""
    whole: bool = False
    """Whether all were."""

    def with_other(self, other: "Reading") -> "Reading":
        return Reading(self.problems + other.problems, self.read + other.read, self.whole and other.whole)


class _Stopped(Exception):
    pass


class Finishing:
    """A save that is being finished: written, then read back, by a thread."""

    def __init__(self, response: Response, path: pathlib.Path, *, read: bool, on_intact: Callable[[], None]):
        """on_intact: called by the thread of process 0 when the reading has ended and found no damage."""
        self.path, self._number = path, next(_saves)
        self._response, self._read, self._on_intact = response, read, on_intact
        self._saved: Future[None] = Future()
        self._reading = Reading()
        self._stop, self._began = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run, name="read back", daemon=True)
        self._thread.start()

    def saved(self) -> None:
        """Waits until the checkpoint is complete. Raises what the save raises."""
        self._saved.result()

    def reading(self, *, whole: bool) -> Reading:
        """What was found, once the thread has ended. whole: lets it read to the end; else it ends where it stands."""
        if not whole:
            self._stop.set()
        self._thread.join()
        return self._reading

    def _run(self) -> None:
        try:
            self._response.result()
        except BaseException as error:  # the caller of `saved` handles it
            self._saved.set_exception(error)
            return
        self._saved.set_result(None)
        try:
            if self._read:
                self._reading = self._read_back()
            if not self._reading.problems and jax.process_index() == 0:
                self._on_intact()
        except Exception:  # a disk that does not answer, say: the checkpoint stays, and a restore verifies it
            log.exception("checkpoint %s could not be read back", self.path)

    def _read_back(self) -> Reading:
        began = time.monotonic()
        reading = self._read_share()
        if jax.process_count() > 1:
            topic = f"read_back/{self._number}"
            publish(f"{topic}/{jax.process_index()}", json.dumps(dataclasses.asdict(reading)))
            if jax.process_index() == 0:
                reading = self._read_by_all(topic)
        if jax.process_index() == 0:
            self._tell(reading, time.monotonic() - began)
        return reading

    def _read_share(self) -> Reading:
        read = 0

        def on_block(size: int) -> None:
            nonlocal read
            read += size
            if self._stop.is_set():
                raise _Stopped

        try:
            _forget(self.path)
            names = sorted(contents.read_sealed(self.path)["arrays"])[jax.process_index() :: jax.process_count()]
            found = contents.problems(self.path, names, on_block, orbax=jax.process_count() == 1)
        except _Stopped:
            return Reading(read=read)
        except Damaged as damage:
            return Reading((str(damage),), read)
        return Reading(tuple(found), read, whole=True)

    def _read_by_all(self, topic: str) -> Reading:
        deadline = None
        while len(found := published(topic)) < jax.process_count():
            if self._stop.is_set():
                deadline = deadline or time.monotonic() + PATIENCE
                if time.monotonic() > deadline:
                    break
            time.sleep(_POLL)
        whole = Reading(whole=len(found) == jax.process_count())
        for text in found.values():
            one = json.loads(text)
            whole = whole.with_other(Reading(tuple(one["problems"]), one["read"], one["whole"]))
        return whole

    def _tell(self, reading: Reading, seconds: float) -> None:
        step = int(self.path.name)
        about = {"step": step, "bytes": reading.read, "seconds": round(seconds, 3)}
        if reading.problems:
            events.record("checkpoint_damaged", **about, problems=list(reading.problems[:5]))
            log.error("checkpoint %s differs from what was saved: %s", self.path, "; ".join(reading.problems[:5]))
        elif reading.whole:
            events.record("checkpoint_read_back", **about)
            log.info("checkpoint %s read back: intact (%s bytes, %.1f s)", self.path, f"{reading.read:,}", seconds)
        else:
            events.record("checkpoint_read_in_part", **about)
            log.info(
                "checkpoint %s read back in part, until the run went on: %s bytes, which are intact",
                *(self.path, f"{reading.read:,}"),
            )


def _forget(checkpoint: pathlib.Path) -> None:
    """Asks the system to drop the files from its cache."""
    for path in checkpoint.rglob("*") if hasattr(os, "posix_fadvise") else ():
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)

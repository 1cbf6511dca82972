"""Names the slow process of a job.

All processes end an update together, because each waits for the others. What tells them apart is the time that a
process takes by itself: the wall time of an update without the time in which it waits for devices, and so for other
processes. It is its input pipeline, its placing of batches, and a host that is slow. (A device that computes slowly
holds up every process alike, and is not seen here.)

Every process sends its time to the job's coordinator at each training line, and process 0 reads the times that have
arrived. No process waits for another, and no device is used.
"""

import logging
import statistics
import time
from typing import Any

import jax

from maverick_jax.coordinator import publish, published
from train.goodput.timeline import Timeline
from train.loop import Hook

log = logging.getLogger(__name__)

_TOPIC = "own_seconds"


class Pace(Hook):
    """`line()` has the times of the slowest and of the median process, and the slowest's number, as they were at the
    last `every`-th update. A process is slow if it takes `RATIO` times as long as the median and holds up an update by
    `PART` of its time: then a line says so, once."""

    RATIO, PART = 1.5, 0.1
    SECONDS = 1.0
    """Least time between two messages to the coordinator."""

    def __init__(self, clock: Timeline, *, every: int):
        self._clock, self._log_every = clock, every
        self._seconds, self._updates, self._blocked = 0.0, 0, clock.blocked
        self._told, self._named = time.monotonic(), None
        self._line: dict[str, Any] = {}

    def line(self) -> dict[str, Any]:
        return self._line

    def on_metrics(self, step: int, metrics: dict[str, Any], seconds: float) -> None:
        self._seconds, self._updates = self._seconds + seconds, self._updates + 1
        if step % self._log_every or time.monotonic() - self._told < self.SECONDS:
            return
        mean, blocked = self._seconds / self._updates, self._clock.blocked
        own = max(0.0, mean - (blocked - self._blocked) / self._updates)
        self._seconds, self._updates, self._blocked, self._told = 0.0, 0, blocked, time.monotonic()
        publish(f"{_TOPIC}/{jax.process_index()}", f"{own:.6f}")
        if jax.process_index() == 0:
            self._compare(step, mean, {int(rank): float(text) for rank, text in published(_TOPIC).items()})

    def _compare(self, step: int, mean: float, own: dict[int, float]) -> None:
        """own: seconds of each process by itself; one that has not told them yet is absent."""
        if len(own) < 2:
            return
        slowest, median = max(own, key=lambda rank: own[rank]), statistics.median_low(own.values())
        self._line = {
            "step_seconds_slowest": own[slowest],
            "step_seconds_median": median,
            "slowest_rank": slowest,
        }
        slow = own[slowest] > self.RATIO * median and own[slowest] - median > self.PART * mean
        if slow and self._named != slowest:
            log.warning(
                "step %d: process %d is slow: it takes %.3g s of an update by itself, the median process %.3g s, and "
                "the others wait for it; look at the load, disk and network of its host",
                *(step, slowest, own[slowest], median),
            )
        elif not slow and self._named is not None:
            log.info("step %d: process %d is not slow any more", step, self._named)
        self._named = slowest if slow else None

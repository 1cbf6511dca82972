"""Leases in an object store: one job at a time writes the copies of a run.

The run directory has a lease of its own (`lease.py`), which names the job that trains. It does not help if the run
directory is on a disk that only one machine sees, and two machines copy to one place. So the place has a lease too: the
object `lease.json`, of the same form, renewed every `BEAT` seconds, free `STALE` seconds after its last renewal or at
once when its process is known to have ended. An object store has no link that only one process can make; who writes a
lease reads it again after `SETTLE` seconds, and gives way if it is another's.
"""

import contextlib
import logging
import threading

import pydantic

from maverick_jax.checkpoint.lease import FILE, STALE, Clock, Holder
from maverick_jax.checkpoint.object_store import ObjectStore
from maverick_jax.errors import MaverickError, RunInUse, harmless

log = logging.getLogger(__name__)

BEAT = 30.0
"""Seconds between two renewals; each is a request."""
SETTLE = 1.0
_lock = threading.RLock()
_all: dict[str, "ObjectLease"] = {}


class ObjectLease:
    """The lease of this process on a place; stores of one process share it. `take` makes it."""

    def __init__(self, store: ObjectStore, clock: Clock):
        self._store, self._clock, self._over = store, clock, threading.Event()
        self._written, self._count = b"", 0
        self.holder = Holder.here(clock.now())

    def require_held(self) -> None:
        """Raises RunInUse if another job has taken the place over, StoreUnreachable if that cannot be looked up."""
        there = _parsed(self._store.read(FILE))
        if there is not None and there.token != self.holder.token:
            raise RunInUse(f"{self._store.url}: another job has taken over ({there}); this one stops copying")

    def release(self) -> None:
        """Gives the lease back, when the last one who took it does."""
        with _lock:
            self._count -= 1
            if self._count > 0:
                return
            self._over.set()
            _all.pop(self._store.url, None)
        with contextlib.suppress(MaverickError):
            there = _parsed(self._store.read(FILE))
            if there is not None and there.token == self.holder.token:
                self._store.delete(FILE)

    def _acquire(self) -> None:
        raw = self._store.read(FILE)
        there = _parsed(raw)
        if there is not None and (why := _why_free(there, self._clock.now())) is None:
            age = max(0.0, self._clock.now() - there.beat)
            raise RunInUse(
                f"{self._store.url} is in use by {harmless(str(there))} (last sign of life {age:.0f} s ago); stop that "
                f"job, or wait: a lease is free {STALE:.0f} s after its last renewal"
            )
        if there is not None:
            log.warning("taking over %s from %s: %s", self._store.url, harmless(str(there)), why)
        if not self._write(raw):
            raise RunInUse(f"{self._store.url} is in use: another job has just taken it")
        if self._store.url.startswith("s3:") and (there is None or not there.has_ended):
            self._clock.sleep(SETTLE)
            self.require_held()

    def _write(self, old: bytes | None) -> bool:
        new = self.holder.model_dump_json().encode()
        done = self._store.replace(FILE, old, new)
        self._written = new if done else self._written
        return done

    def _renew_until_over(self) -> None:
        while not self._over.wait(BEAT):
            self.holder = self.holder.model_copy(update={"beat": self._clock.now()})
            with contextlib.suppress(MaverickError):  # it may be away for a while; `require_held` looks again
                if not self._write(self._written) and self._store.read(FILE) is None:
                    self._write(None)


def take(store: ObjectStore, clock: Clock | None = None) -> ObjectLease:
    """The lease on the place of `store`. Raises RunInUse, naming the holder, if another job has it."""
    with _lock:
        found = _all.get(store.url)
        if found is None:
            found = ObjectLease(store, clock or Clock())
            found._acquire()
            _all[store.url] = found
            threading.Thread(target=found._renew_until_over, name="object lease", daemon=True).start()
        found._count += 1
        return found


def _why_free(there: Holder, now: float) -> str | None:
    """Why the lease may be taken over; None: it may not."""
    if there.has_ended:
        return "that process has ended"
    if there.has_ended is False:
        return "this process has given it up" if there.pid == Holder.here(now).pid else None
    age = now - there.beat
    return f"no sign of life for {age:.0f} s" if age > STALE else None


def _parsed(raw: bytes | None) -> Holder | None:
    """The holder; None for no lease, and for one that cannot be read, which is nobody's."""
    if raw is None:
        return None
    try:
        return Holder.model_validate_json(raw[: 1 << 14])
    except pydantic.ValidationError:
        return None

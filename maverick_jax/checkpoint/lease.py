"""Leases: one job at a time writes to a directory of checkpoints, and to the run that it belongs to.

The lease on a directory is the file `lease.json` in it, which names its holder: host, process, job, and the time of its
last sign of life. The holder renews the file every `BEAT` seconds. The file is created by a hard link, which succeeds
for one process only, on shared file systems too; no file locks are needed. A lease is taken over, with a line in the
log, when its process has ended (known on the same machine) or when it was not renewed for `STALE` seconds. It is then
watched for `WATCH` seconds more, in case the clocks of two machines differ. Whoever loses a lease stops writing:
`require_held`.

A lease belongs to a process. Several stores of a process share it; `claimed` refuses a second job in the same process.
"""

import contextlib
import dataclasses
import datetime
import errno
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pydantic
from jax.experimental import multihost_utils

from maverick_jax.errors import InputError, MaverickError, RunInUse, harmless
from maverick_jax.process_identity import ProcessIdentity
from maverick_jax.settings.section import Section

log = logging.getLogger(__name__)

FILE = "lease.json"
BEAT = 10.0
"""Seconds between two renewals."""
STALE = 120.0
"""Seconds without renewal after which a lease may be taken over."""
WATCH = 2.5 * BEAT
"""Seconds for which such a lease is watched before it is."""
JOB_VARIABLES = ("MAVERICK_JOB_ID", "SLURM_JOB_ID")
"""Environment variables that name the job of a process, the first that is set."""
_ATTEMPTS, _MAX_BYTES = 8, 1 << 14
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


@dataclasses.dataclass(frozen=True)
class Clock:
    """The time, in seconds since the epoch, and how to wait."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Holder(Section):
    """Who holds a lease."""

    host: str
    machine: str
    """Equal only for processes that see each other's process ids."""
    pid: int
    started: int | None
    """Start of the process in clock ticks since the machine's; null: unknown."""
    job: str | None
    token: str
    """Differs for each lease."""
    since: float
    beat: float
    """Time of the last renewal."""

    @classmethod
    def here(cls, now: float) -> "Holder":
        job = next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), None)
        process = dataclasses.asdict(ProcessIdentity.here())
        return cls(host=socket.gethostname(), **process, job=job, token=uuid.uuid4().hex, since=now, beat=now)

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        since = datetime.datetime.fromtimestamp(self.since).astimezone().isoformat(" ", "seconds")
        return f"process {self.pid} on {self.host}{job}, since {since}"

    @property
    def has_ended(self) -> bool | None:
        """Whether its process has ended; None if it cannot be known here."""
        return ProcessIdentity(self.machine, self.pid, self.started).has_ended


class Lease:
    """A process's right to write to a directory: `take` makes it, `release` or its collection gives it back."""

    def __init__(self, held: "_Held", claim: bool):
        self._held = held
        self.release: Callable[[], object] = weakref.finalize(self, _release, held, claim)
        """Gives the lease back. Calling it again does nothing."""

    @property
    def holder(self) -> Holder:
        return self._held.holder

    def require_held(self) -> None:
        """Raises RunInUse if another job has taken the lease over, which is looked up on disk."""
        self._held.require()


def take(
    directory: str | pathlib.Path, *, claim: bool = False, steal: bool = False, clock: Clock | None = None
) -> Lease:
    """The lease on `directory`, which is created. Of the processes of a job only one may ask.

    claim: for the job that runs here, and for no second one in this process. steal: takes the lease from its holder,
    who stops at its next `require_held`. Raises RunInUse, naming the holder, if another job holds it, and InputError if
    the directory cannot be written.
    """
    path = pathlib.Path(directory).expanduser().resolve() / FILE
    with _lock:
        held = _all_held.get(path)
        if held is None or held.lost is not None or held.holder.pid != os.getpid():
            try:
                held = _all_held[path] = _acquire(path, steal, clock or Clock())
            except OSError as error:
                raise InputError(f"checkpoint directory {path.parent} cannot be written: {error}") from error
        elif claim and held.claimed:
            raise RunInUse(f"{path.parent} is in use by this process; only one job at a time may write to it")
        held.count += 1
        held.claimed |= claim
        return Lease(held, claim)


@contextlib.contextmanager
def claimed(directory: str | pathlib.Path) -> Iterator[None]:
    """Holds the lease on `directory` for this job. All processes of the job call it; process 0 holds the lease, and all
    raise what it meets: see `take`."""
    lease, problem = None, None
    if jax.process_index() == 0:
        try:
            lease = take(directory, claim=True)
        except MaverickError as error:
            problem = error
    if anywhere(problem is not None):
        raise problem or RunInUse(f"{directory} is in use by another job, or cannot be written: see process 0")
    try:
        yield
    finally:
        if lease is not None:
            lease.release()


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any process of the job; the result is the same on all."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def release_all() -> None:
    """Gives back every lease of this process, for one that is about to end without its ordinary way out."""
    if _lock.acquire(timeout=5):
        try:
            for held in list(_all_held.values()):
                held.end()
        finally:
            _lock.release()


def holder_of(directory: str | pathlib.Path) -> Holder | None:
    """Who holds the lease on `directory`, dead or alive; None if nobody does or the file cannot be read."""
    found = _read(pathlib.Path(directory).expanduser() / FILE)
    return found if isinstance(found, Holder) else None


# ---- implementation ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Held:
    """A lease of this process, shared by `count` objects, and the thread that renews it."""

    path: pathlib.Path
    holder: Holder
    clock: Clock
    created: list[pathlib.Path]
    """Folders that did not exist before, the innermost first."""
    count: int = 0
    claimed: bool = False
    lost: str | None = None
    """Who has taken it over."""
    ended: threading.Event = dataclasses.field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._renew_until_ended, name="lease", daemon=True).start()

    def _renew_until_ended(self) -> None:
        while not self.ended.wait(BEAT) and self.lost is None:
            self.renew()

    def renew(self) -> None:
        """A sign of life; notes and logs when another job has the lease."""
        with _lock:
            if self.ended.is_set() or self._is_lost():
                return
            self.holder = self.holder.model_copy(update={"beat": self.clock.now()})
            with contextlib.suppress(OSError):  # a shared file system may be away for a while
                fresh = self.path.with_name(f"{FILE}.{self.holder.token}")
                fresh.unlink(missing_ok=True)
                _write(fresh, self.holder)
                fresh.replace(self.path)

    def require(self) -> None:
        with _lock:
            if self._is_lost():
                raise RunInUse(f"{self.path.parent}: another job has taken over ({self.lost}); this one stops writing")

    def _is_lost(self) -> bool:
        if self.lost is None and not self.ended.is_set():
            there = _read(self.path)
            if there is None:  # somebody has deleted it: ours again, unless somebody else is faster
                with contextlib.suppress(OSError):
                    there = None if _create(self.path, self.holder) else _read(self.path)
            if isinstance(there, Holder) and there.token != self.holder.token:
                self.lost = str(there)
                log.error("%s: another job has taken over: %s", self.path.parent, harmless(self.lost))
        return self.lost is not None

    def end(self) -> None:
        """Removes the file if it is still ours, and folders that were made for it and are empty."""
        self.ended.set()
        if _all_held.get(self.path) is self:
            del _all_held[self.path]
        there = _read(self.path)
        with contextlib.suppress(OSError):
            if isinstance(there, Holder) and there.token == self.holder.token:
                self.path.unlink()
            for folder in self.created:
                folder.rmdir()


_lock = threading.RLock()  # leases may be collected, and so released, at any moment
_all_held: dict[pathlib.Path, _Held] = {}


def _release(held: _Held, claim: bool) -> None:
    if held.holder.pid != os.getpid():
        return  # a fork of the process that holds it
    with _lock:
        held.count -= 1
        held.claimed &= not claim
        if held.count == 0 and not held.ended.is_set():
            held.end()


def _acquire(path: pathlib.Path, steal: bool, clock: Clock) -> _Held:
    folders = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for _ in range(_ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _Held(path, Holder.here(clock.now()), clock, folders)
        if _create(path, held.holder):
            _sweep(path, clock)
            held.start()
            return held
        there = _read(path)
        if there is None:
            continue
        why = "as asked" if steal else _why_free(path, there, clock)
        if why is None:
            raise RunInUse(_in_use(path, there, clock))
        log.warning("taking over %s from %s: %s", path.parent, harmless(str(there)), why)
        _remove(path, there)
    raise RunInUse(f"{path.parent} is in use: other jobs are taking it over")


def _sweep(path: pathlib.Path, clock: Clock) -> None:
    """Removes files that processes left which were killed while they wrote a lease."""
    for left in path.parent.glob(f"{FILE}.*"):
        with contextlib.suppress(OSError):
            if clock.now() - left.stat().st_mtime > STALE:
                left.unlink()


def _why_free(path: pathlib.Path, there: "Holder | _Unreadable", clock: Clock) -> str | None:
    """Why the lease may be taken over; None: it may not."""
    ended = there.has_ended
    if ended:
        return "that process has ended"
    if isinstance(there, Holder) and there.pid == os.getpid() and ended is False:
        return "this process has given it up"  # it is in no table of ours
    if ended is False or (age := clock.now() - there.beat) <= STALE:
        return None
    log.info(
        "%s: %s gave no sign of life for %.0f s; watching it for %.0f s", path.parent, harmless(str(there)), age, WATCH
    )
    clock.sleep(WATCH)
    return f"no sign of life for {age + WATCH:.0f} s" if _read(path) == there else None


def _in_use(path: pathlib.Path, there: "Holder | _Unreadable", clock: Clock) -> str:
    age = max(0.0, clock.now() - there.beat)
    return (
        f"{path.parent} is in use by {there} (last sign of life {age:.0f} s ago); stop that job, or wait until it ends"
    )


@dataclasses.dataclass(frozen=True)
class _Unreadable:
    """A lease file that is none, such as one whose writer died."""

    beat: float
    """When it was written."""
    has_ended = None

    def __str__(self) -> str:
        return f"somebody whose {FILE} cannot be read"


def _read(path: pathlib.Path) -> Holder | _Unreadable | None:
    """The lease at `path`; None if there is none, or if it cannot be looked up now."""
    try:
        with path.open("rb") as file:
            raw, beat = file.read(_MAX_BYTES), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    try:
        return Holder.model_validate_json(raw)
    except pydantic.ValidationError:
        return _Unreadable(beat)


def _write(path: pathlib.Path, holder: Holder) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o644)) as file:
        file.write(holder.model_dump_json().encode() + b"\n")


def _create(path: pathlib.Path, holder: Holder) -> bool:
    """Creates the lease file, whole; False if there is one."""
    fresh = path.with_name(f"{FILE}.{holder.token}")
    try:
        _write(fresh, holder)
        try:
            os.link(fresh, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write(path, holder)  # a file system without hard links
        return True
    except FileExistsError:
        return False
    finally:
        fresh.unlink(missing_ok=True)


def _remove(path: pathlib.Path, there: Holder | _Unreadable) -> None:
    """Removes the lease file if it is still that of `there`; another one that was there instead is put back."""
    aside = path.with_name(f"{FILE}.{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        found = _read(aside)
        same = found.token == there.token if isinstance(found, Holder) and isinstance(there, Holder) else found == there
        if not same:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()

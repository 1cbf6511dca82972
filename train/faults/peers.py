"""Watches the other processes of a job: who is dead or frozen, who was asked to stop, and what this process does then.

Collectives report a dead peer only sometimes: if a process has several devices, most of their collectives wait for each
other until JAX aborts the process after 100 s, with an exit code that does not name the cause. So each process

- looks every second whether the processes on its machine still run;
- sends heartbeats to the coordinator of the job, watches those of the next process, and tells all when they stop: three
  small messages per beat.

Collectives that do report a dead peer do not name it. Then the processes that are left say so, and the one that neither
says so nor beats is the dead one.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # its key-value store has no public name

from maverick_jax.checkpoint.lease import release_all
from maverick_jax.errors import HUNG, PeerFailed, Preempted
from maverick_jax.process_identity import ProcessIdentity
from train.goodput import timeline

log = logging.getLogger(__name__)

LOST, FINISHED, LEFT = "lost another", "finished", "left"
"""Last heartbeat of a process that ends because another one is dead, of one that ends in order, and of one that ends
with an error of its own."""
_REASONS = {PeerFailed.exit_code: PeerFailed.__name__, Preempted.exit_code: Preempted.__name__, HUNG: "Watchdog"}
"""What the record of wall time says of each code."""
_LOOK = 1.0
"""Seconds between two looks at the processes of this machine."""
_GRACE = 10.0
"""Seconds that this process has to end by itself after another one left with an error, which may be that of all."""
_PARTING = 1.0
"""Seconds that a process may take to end after it has said so, at most."""
_FIND_UNTIL = 64
"""Heartbeats after which the processes of this machine are known."""
_MOST = 600_000
"""Milliseconds for which a process that has finished waits for others; those that die meanwhile end it earlier."""


class Peers(threading.Thread):
    """Exits with code 76 when another process is dead or frozen, and says which one; with the code of another one that
    was asked to stop before there was anything to save (75), or that found the job to hang (77)."""

    _BEATS = 16
    """Heartbeats per timeout."""

    def __init__(
        self,
        me: int,
        count: int,
        timeout: float,
        coordinator: str,
        advice: Callable[[], str] = lambda: "",
        write_stacks: Callable[[str], object] = lambda message: None,
    ):
        """timeout: seconds without a heartbeat after which a process counts as dead. advice: what to do about it.
        write_stacks: called where the job hangs, with the reason."""
        super().__init__(name="peers", daemon=True)
        self._me, self._count, self._next, self._timeout = me, count, (me + 1) % count, timeout
        self._coordinator, self._advice, self._write_stacks = coordinator, advice, write_stacks
        self._store: Any = global_state.client
        self._here: dict[int, ProcessIdentity] = {}
        """The other processes of this machine."""
        self._left_since: dict[int, float] = {}
        self._finished = threading.Event()
        atexit.register(self._finish)

    @property
    def over(self) -> bool:
        """Whether this process does not watch the others any more, and need not wait for them."""
        return self._finished.is_set()

    def run(self) -> None:
        beat = self._timeout / self._BEATS
        count, last, since, next_beat = 0, None, time.monotonic(), 0.0
        mine = {"host": socket.gethostname(), **vars(ProcessIdentity.here())}
        self._set(f"host/{self._me}", json.dumps(mine))
        while not self._finished.wait(min(beat, _LOOK)):
            self._look()
            if (now := time.monotonic()) < next_beat:
                continue
            next_beat = now + beat
            count += 1
            self._set(f"alive/{self._me}", str(count))
            seen = self._get(f"alive/{self._next}")
            if seen != last or seen == FINISHED:  # a process without any heartbeat counts as silent from the start
                last, since = seen, now
            elif now - since > self._timeout:
                self._say(PeerFailed.exit_code,
                          f"{self._named(self._next)} has given no sign of life for {self._timeout:.0f} s")  # fmt: skip
            if len(self._here) < self._count - 1 and count < _FIND_UNTIL and count % self._BEATS in (1, 2):
                self._find_those_here()
            self._obey()

    # ---- how a process ends ----------------------------------------------------------------------------------------

    def lost(self) -> tuple[int, str]:
        """The exit code of this process after an error of its communication, and which process is dead, or what it was
        asked for. Ends the watch; may take five heartbeats.

        Each process looks at the next one alone and tells all what it finds, so that a large job asks few questions."""
        self._finished.set()
        self.join(self._timeout)
        beat = self._timeout / self._BEATS
        code, found = PeerFailed.exit_code, ""
        try:
            self._store.key_value_set(f"maverick/alive/{self._me}", LOST, allow_overwrite=True)
            self._find_those_here()
            last = self._try_get(f"alive/{self._next}")
            for quarter in range(20):
                if said := self._try_get("ended"):
                    code, found = _parsed(said)
                    break
                now = self._try_get(f"alive/{self._next}")
                silent = quarter >= 12 and now == last
                gone = self._gone_from_here()
                if gone is not None or (silent and now not in (LOST, FINISHED)):
                    found = f"{self._named(self._next if gone is None else gone)} ended or cannot be reached"
                    self._tell(code, found)
                    break
                time.sleep(beat / 4)
            self._linger()
            return code, found or "another process ended or cannot be reached"
        except jax.errors.JaxRuntimeError:
            return code, f"process 0 at {self._coordinator} ended or cannot be reached"

    def leave_stopped(self) -> None:
        """Tells all that this process was asked to stop and has nothing to save, so that they end with its code."""
        self._leave(Preempted.exit_code, f"process {self._me} was asked to stop")

    def leave_hung(self, message: str) -> None:
        """Tells all that this process has waited for too long, so that they write down where they are and end too."""
        self._leave(HUNG, message)

    def _leave(self, code: int, reason: str) -> None:
        self._finished.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"maverick/alive/{self._me}", LOST, allow_overwrite=True)
            self._tell(code, reason)
            self._linger()

    def _linger(self, seconds: float | None = None) -> bool:
        """Process 0, whom the others ask, waits until all have said that they end, for two heartbeats by default, and
        then until they have, as far as it can see. Returns whether they have said so."""
        end = time.monotonic() + (2 * self._timeout / self._BEATS if seconds is None else seconds)
        while self._me == 0:
            beats = {key.rpartition("/")[2]: beat for key, beat in self._store.key_value_dir_get("maverick/alive/")}
            there = set(range(self._count)) - {peer for peer, process in self._here.items() if process.has_ended}
            if all(beats.get(str(peer)) in (LOST, LEFT, FINISHED) for peer in there):
                break
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        end = time.monotonic() + _PARTING
        others = [self._here.get(peer) for peer in range(self._count) if peer != self._me]
        while self._me == 0 and time.monotonic() < end and not all(one and one.has_ended for one in others):
            time.sleep(0.02)
        return True

    def leave_with_error(self) -> None:
        """This process ends with an error of its own. If it is process 0, without which JAX aborts the others, it waits
        for those with the same error, then tells the rest."""
        self._finished.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"maverick/alive/{self._me}", LEFT, allow_overwrite=True)
            if self._me == 0:
                self._find_those_here()
            if not self._linger(_GRACE):
                self._tell(PeerFailed.exit_code, f"process {self._me} ended with an error")
                self._linger()

    def _finish(self) -> None:
        """On an orderly exit: waits for the others, watching them meanwhile. JAX's own barrier, which comes afterwards,
        notices the death of a process after 100 s."""
        if self._finished.is_set():
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.wait_at_barrier("maverick/finished", _MOST)
            self._store.key_value_set(f"maverick/alive/{self._me}", FINISHED, allow_overwrite=True)
        self._finished.set()
        self.join(self._timeout)

    # ---- what it sees ----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if any(process.has_ended for process in self._here.values()):
            self._obey()  # it may have said why
        if (gone := self._gone_from_here()) is not None:
            self._say(PeerFailed.exit_code, f"{self._named(gone)} ended")

    def _gone_from_here(self) -> int | None:
        """A process that ran on this machine, and does not any more without having said that it ends."""
        for peer, process in self._here.items():
            if not process.has_ended or (last := self._get(f"alive/{peer}")) in (FINISHED, LOST):
                continue
            if last != LEFT or time.monotonic() - self._left_since.setdefault(peer, time.monotonic()) > _GRACE:
                return peer
        return None

    def _find_those_here(self) -> None:
        mine = ProcessIdentity.here()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            for key, text in self._store.key_value_dir_get("maverick/host/"):
                peer, found = int(key.rpartition("/")[2]), json.loads(text)
                process = ProcessIdentity(found["machine"], found["pid"], found["started"])
                if peer != self._me and process.machine == mine.machine:
                    self._here[peer] = process

    def _obey(self) -> None:
        """Ends this process if another one has said that the job is over."""
        if said := self._get("ended"):
            self._exit(*_parsed(said))

    def _named(self, peer: int) -> str:
        with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):
            if found := self._try_get(f"host/{peer}"):
                return f"process {peer} on {json.loads(found)['host']}"
        return f"process {peer} on an unknown host"

    # ---- messages --------------------------------------------------------------------------------------------------

    def _say(self, code: int, reason: str) -> None:
        """Tells all, and ends this process."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._tell(code, reason)
        self._exit(code, reason)

    def _tell(self, code: int, reason: str) -> None:
        self._store.key_value_set("maverick/ended", f"{code} {reason}", allow_overwrite=True)

    def _set(self, key: str, value: str) -> None:
        try:
            self._store.key_value_set(f"maverick/{key}", value, allow_overwrite=True)
        except jax.errors.JaxRuntimeError as error:
            self._exit_without_0(error)

    def _get(self, key: str) -> str | None:
        try:
            return self._try_get(key)
        except jax.errors.JaxRuntimeError as error:
            self._exit_without_0(error)

    def _try_get(self, key: str) -> str | None:
        """None where nobody has set it. Raises JaxRuntimeError where process 0 does not answer."""
        try:
            return self._store.key_value_try_get(f"maverick/{key}")
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _exit_without_0(self, error: Exception) -> NoReturn:
        if self._finished.is_set():
            if threading.current_thread() is self:
                sys.exit()  # of this thread: the main thread ends the process, and says why
            raise error
        reason = f"process 0 at {self._coordinator} ended or cannot be reached ({str(error).splitlines()[0][:200]})"
        self._exit(PeerFailed.exit_code, reason)

    def _exit(self, code: int, reason: str) -> NoReturn:
        log.error("%s; %s", reason, self._advice())
        if code == HUNG:
            self._write_stacks(f"{reason}. This is process {self._me}, which ends too; where its threads were:\n")
        logging.shutdown()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._store.key_value_set(f"maverick/alive/{self._me}", LOST, allow_overwrite=True)
            self._linger()
        timeline.leaving(_REASONS[code])
        release_all()
        os._exit(code)


def _parsed(said: str) -> tuple[int, str]:
    """Exit code and reason of what a process told all."""
    code, _, reason = said.partition(" ")
    return int(code), reason

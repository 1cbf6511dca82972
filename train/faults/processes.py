"""Jobs of several processes: they connect, detect a dead process, and exit without waiting for it."""

import atexit
import contextlib
import logging
import os
import pathlib
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # its key-value store has no public name

from maverick_jax.checkpoint.lease import release_all
from maverick_jax.errors import InputError, MaverickError, PeerFailed
from maverick_jax.progress import number_lines
from maverick_jax.settings.redaction import redact
from train.goodput import timeline

log = logging.getLogger(__name__)

LOST, FINISHED = "lost another", "finished"
"""Last heartbeat of a process that ends because another one is dead, and of one that ends in order."""
EVERYWHERE = ("", "*", "0.0.0.0", "::", "[::]")
"""Hosts that mean all interfaces of a machine."""
_monitor: "_PeerMonitor | None" = None
_checkpoints: pathlib.Path | None = None

# statuses of runtime errors that this process caused itself, and not the death of another process
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION", "NOT_FOUND")


def initialize_from_environment(*, peer_timeout: float = 60.0) -> None:
    """Joins the job that the environment variables describe, if there is one and it was not joined yet. Must be called
    before any other use of JAX.

    From then on, this process exits with code 76 if another one has been dead or frozen for `peer_timeout` seconds, its
    log lines have its number, and those of process 0 alone inform.

    The variables are MAVERICK_COORDINATOR (host:port of process 0), and MAVERICK_NUM_PROCESSES and MAVERICK_PROCESS_ID,
    or else SLURM_NTASKS and SLURM_PROCID. Raises InputError if some are missing.
    """
    if jax.distributed.is_initialized():
        return
    environment = os.environ
    coordinator = environment.get("MAVERICK_COORDINATOR")
    if not coordinator:
        if environment.get("MAVERICK_NUM_PROCESSES", "1") != "1" or int(environment.get("SLURM_NTASKS", "1")) > 1:
            raise InputError("several processes were started, but MAVERICK_COORDINATOR (host:port) is not set")
        return
    num_processes = _number("MAVERICK_NUM_PROCESSES", "SLURM_NTASKS")
    process_id = _number("MAVERICK_PROCESS_ID", "SLURM_PROCID")
    if ":" not in coordinator or not 0 <= process_id < num_processes:
        raise InputError(
            f"MAVERICK_COORDINATOR={coordinator} with process {process_id} of {num_processes}: expected host:port and "
            "a process number below the number of processes"
        )
    if coordinator.rpartition(":")[0] in EVERYWHERE:
        raise InputError(f"MAVERICK_COORDINATOR={coordinator}: the coordinator has no password and would listen on "
                         "every interface; give the address of process 0 that the other processes use")  # fmt: skip
    if num_processes == 1:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        # the default binds to every interface, and the service has no authentication
        coordinator_bind_address=coordinator,
        cluster_detection_method="deactivate",
    )
    _number_lines(process_id)
    global _monitor
    _monitor = _PeerMonitor(process_id, num_processes, peer_timeout, coordinator)
    _monitor.start()


def _number_lines(process_id: int) -> None:
    """Log lines and those of progress get the number of their process; only process 0 says what is no warning."""
    number_lines(process_id)

    def numbered(record: logging.LogRecord) -> bool:
        if not hasattr(record, "process_id"):
            record.process_id = process_id
            record.name = f"[{process_id}] {record.name}"
        return process_id == 0 or record.levelno >= logging.WARNING

    for handler in logging.getLogger().handlers:
        handler.addFilter(numbered)


def resumes_from(checkpoints: pathlib.Path) -> None:
    """Tells messages about dead processes where the run's checkpoints are."""
    global _checkpoints
    _checkpoints = checkpoints


def _restart() -> str:
    """What to do after the death of a process."""
    saved = [int(path.name) for path in _checkpoints.glob("*") if path.name.isdigit()] if _checkpoints else []
    where = f"from step {max(saved)}" if saved else "from its newest checkpoint, or begins anew where there is none"
    return f"start the job again: it resumes {where}"


def publish(key: str, value: str) -> None:
    """Leaves a value with the coordinator of the job, in the place of the former one. The monitor of the processes
    handles a coordinator that does not answer."""
    coordinator: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        coordinator.key_value_set(f"maverick/{key}", value, allow_overwrite=True)


def published(topic: str) -> dict[str, str]:
    """The values under `topic/` that processes have left with the coordinator, by the rest of their keys."""
    coordinator: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        found = coordinator.key_value_dir_get(f"maverick/{topic}/")
        return {key.rpartition("/")[2]: value for key, value in found}
    return {}


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of a process after `error`; None for a bug, which should show its traceback."""
    if isinstance(error, MaverickError):
        return error.exit_code
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
        return None if str(error).startswith(_OWN_FAULT) else PeerFailed.exit_code
    return None


def said(error: BaseException) -> str:
    """What a process says of the error that ends it: in a job of several its number comes first, and an error that the
    death of another process caused names that process."""
    if not jax.distributed.is_initialized():
        return redact(str(error))
    text = redact(str(error))
    if exit_code_of(error) == PeerFailed.exit_code and _monitor is not None:
        first = text.splitlines()[0] if text else type(error).__name__
        text = f"{_monitor.lost()}; {_restart()} ({first[:200]})"
    return f"[{jax.process_index()}] {text}"


def leave(code: int) -> NoReturn:
    """Ends the process with `code`.

    In a job of several processes, an error ends the process at once: an ordinary exit waits at a barrier that the other
    processes may never reach, and is then aborted with another code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and code not in (0, 75):
        release_all()
        os._exit(code)
    sys.exit(code)


class _PeerMonitor(threading.Thread):
    """Exits with code 76 when another process is dead or frozen, and says which one.

    Collectives report a dead peer only sometimes: if a process has several devices, most of their collectives wait for
    each other until JAX aborts the process after 100 s, with an exit code that does not name the cause. So each process
    sends heartbeats, watches those of the next process, and tells all when they stop: three small messages per beat.

    Collectives that do report one do not name it. Then the processes that are left say so, and the one that neither
    says so nor beats is the dead one.
    """

    _BEATS = 16
    """Heartbeats per timeout."""

    def __init__(self, process_id: int, num_processes: int, timeout: float, coordinator: str):
        super().__init__(name="peer monitor", daemon=True)
        self._me, self._next, self._timeout = process_id, (process_id + 1) % num_processes, timeout
        self._coordinator = coordinator
        self._store: Any = global_state.client
        self._finished = threading.Event()
        atexit.register(self._finish)

    def run(self) -> None:
        count, last, since = 0, None, time.monotonic()
        self._set(f"host/{self._me}", f"{socket.gethostname()} {os.getpid()}")
        while not self._finished.wait(self._timeout / self._BEATS):
            count += 1
            self._set(f"alive/{self._me}", str(count))
            beat = self._get(f"alive/{self._next}")
            if beat != last or beat == FINISHED:  # a process without any heartbeat counts as silent from the start
                last, since = beat, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._set("failed", f"{self._named(self._next)} has given no sign of life for {self._timeout:.0f} s")
            if failed := self._get("failed"):
                self._exit(failed)

    def lost(self) -> str:
        """Which process is dead, as this one lost it. Ends the monitoring; may take five heartbeats.

        Each process looks at the next one alone and tells all what it finds, so that a large job asks few questions."""
        self._finished.set()
        self.join(self._timeout)
        beat = self._timeout / self._BEATS
        try:
            self._store.key_value_set(f"maverick/alive/{self._me}", LOST, allow_overwrite=True)
            last = self._try_get(f"alive/{self._next}")
            for quarter in range(20):
                if found := self._try_get("failed"):
                    break
                now = self._try_get(f"alive/{self._next}")
                silent = quarter >= 12 and now == last
                if now not in (LOST, FINISHED) and (silent or self._gone_from_here(self._next)):
                    found = f"{self._named(self._next)} ended or cannot be reached"
                    self._store.key_value_set("maverick/failed", found, allow_overwrite=True)
                    break
                time.sleep(beat / 4)
            if self._me == 0:
                time.sleep(beat)  # the others ask this process
            return found or "another process ended or cannot be reached"
        except jax.errors.JaxRuntimeError:
            return f"process 0 at {self._coordinator} ended or cannot be reached"

    def _named(self, peer: int) -> str:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if found := self._try_get(f"host/{peer}"):
                return f"process {peer} on {found.rpartition(' ')[0]}"
        return f"process {peer} on an unknown host"

    def _gone_from_here(self, peer: int) -> bool:
        """Whether the process ran on this machine, and does not any more."""
        host, _, number = (self._try_get(f"host/{peer}") or "").rpartition(" ")
        if host != socket.gethostname() or not number.isdigit():
            return False
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return _is_zombie(int(number))

    def _finish(self) -> None:
        """Ends the monitoring on an orderly exit, before JAX's shutdown barrier."""
        self._finished.set()
        self.join(self._timeout)
        self._set(f"alive/{self._me}", FINISHED)

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
        if self._finished.is_set() and threading.current_thread() is self:
            sys.exit()  # of this thread: the main thread ends the process, and says why
        self._exit(f"process 0 at {self._coordinator} ended or cannot be reached ({str(error).splitlines()[0][:200]})")

    def _exit(self, reason: str) -> NoReturn:
        log.error("%s; %s", reason, _restart())
        logging.shutdown()
        timeline.leaving(PeerFailed.__name__)
        release_all()
        os._exit(PeerFailed.exit_code)


def _is_zombie(number: int) -> bool:
    """Whether the process has ended and nobody has asked for its exit code yet; False where that cannot be known."""
    try:
        return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _number(*names: str) -> int:
    for name in names:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise InputError(f"{name}={os.environ[name]}: expected a number")
            return int(os.environ[name])
    raise InputError(f"MAVERICK_COORDINATOR is set, but neither {' nor '.join(names)} is")

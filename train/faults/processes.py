"""Jobs of several processes: they connect, detect a dead process, and exit without waiting for it."""

import atexit
import logging
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # its key-value store has no public name

from maverick_jax.checkpoint.lease import release_all
from maverick_jax.errors import InputError, MaverickError, PeerFailed

log = logging.getLogger(__name__)

# statuses of runtime errors that this process caused itself, and not the death of another process
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION", "NOT_FOUND")


def initialize_from_environment(*, peer_timeout: float = 60.0) -> None:
    """Joins the job that the environment variables describe, if there is one and it was not joined yet. Must be called
    before any other use of JAX.

    From then on, this process exits with code 76 if another one has been dead or frozen for `peer_timeout` seconds.

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
    _PeerMonitor(process_id, num_processes, peer_timeout).start()


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of a process after `error`; None for a bug, which should show its traceback."""
    if isinstance(error, MaverickError):
        return error.exit_code
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
        return None if str(error).startswith(_OWN_FAULT) else PeerFailed.exit_code
    return None


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
    """Exits with code 76 when another process is dead or frozen.

    Collectives report a dead peer only sometimes: if a process has several devices, most of their collectives wait for
    each other until JAX aborts the process after 100 s, with an exit code that does not name the cause. So each process
    sends heartbeats, watches those of the next process, and tells all when they stop: three small messages per beat.
    """

    _BEATS = 8
    """Heartbeats per timeout."""

    def __init__(self, process_id: int, num_processes: int, timeout: float):
        super().__init__(name="peer monitor", daemon=True)
        self._me, self._next, self._timeout = process_id, (process_id + 1) % num_processes, timeout
        self._store: Any = global_state.client
        self._finished = threading.Event()
        atexit.register(self._finish)

    def run(self) -> None:
        count, last, since = 0, None, time.monotonic()
        while not self._finished.wait(self._timeout / self._BEATS):
            count += 1
            self._set(f"alive/{self._me}", str(count))
            beat = self._get(f"alive/{self._next}")
            if beat != last or beat == "finished":  # a process without any heartbeat counts as silent from the start
                last, since = beat, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._set("failed", f"process {self._next} gives no sign of life")
            if failed := self._get("failed"):
                self._exit(failed)

    def _finish(self) -> None:
        """Ends the monitoring on an orderly exit, before JAX's shutdown barrier."""
        self._finished.set()
        self.join(self._timeout)
        self._set(f"alive/{self._me}", "finished")

    def _set(self, key: str, value: str) -> None:
        try:
            self._store.key_value_set(f"maverick/{key}", value, allow_overwrite=True)
        except jax.errors.JaxRuntimeError as error:
            self._exit(f"process 0 does not answer: {error}")

    def _get(self, key: str) -> str | None:
        try:
            return self._store.key_value_try_get(f"maverick/{key}")
        except jax.errors.JaxRuntimeError as error:
            return None if "NOT_FOUND" in str(error) else self._exit(f"process 0 does not answer: {error}")

    def _exit(self, reason: str) -> NoReturn:
        log.error("%s: exiting with code %d, so that the job can be restarted", reason, PeerFailed.exit_code)
        logging.shutdown()
        release_all()
        os._exit(PeerFailed.exit_code)


def _number(*names: str) -> int:
    for name in names:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise InputError(f"{name}={os.environ[name]}: expected a number")
            return int(os.environ[name])
    raise InputError(f"MAVERICK_COORDINATOR is set, but neither {' nor '.join(names)} is")

"""Jobs of several processes: how they find each other, notice that one is gone, and leave without hanging on it."""

import atexit
import logging
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state  # its key-value store has no public name

from maverick_jax.errors import InputError, MaverickError, PeerFailed

log = logging.getLogger(__name__)

# Statuses of a runtime error that are this process's own doing, not the end of another process.
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION", "NOT_FOUND")


def initialize_from_environment(*, peer_timeout: float = 60.0) -> None:
    """Joins the job described by the environment, unless it describes none or was joined. Call before any use of JAX.

    From then on this process exits with code 76 when another has been dead or frozen for `peer_timeout` seconds.

    MAVERICK_COORDINATOR (host:port of process 0), and MAVERICK_NUM_PROCESSES and MAVERICK_PROCESS_ID or else
    SLURM_NTASKS and SLURM_PROCID. Raises InputError when the description is incomplete.
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
        # The default binds every interface, and the service asks nobody for a password.
        coordinator_bind_address=coordinator,
        cluster_detection_method="deactivate",
    )
    _PeerMonitor(process_id, num_processes, peer_timeout).start()


def exit_code_of(error: BaseException) -> int | None:
    """The code a process should end with after `error`; None for a bug, which deserves its traceback."""
    if isinstance(error, MaverickError):
        return error.exit_code
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
        return None if str(error).startswith(_OWN_FAULT) else PeerFailed.exit_code
    return None


def leave(code: int) -> NoReturn:
    """Ends the process with `code`.

    In a job of several processes an error ends it at once: the ordinary way out waits for all the others at a barrier,
    which they may never reach, and is then aborted with another code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized() and code not in (0, 75):
        os._exit(code)
    sys.exit(code)


class _PeerMonitor(threading.Thread):
    """A dead peer shows as an error of a collective only sometimes: where a process has several devices, most of their
    collectives wait for each other instead, until JAX aborts the process after 100 s with a code that says nothing.

    Each process beats, watches the next one, and tells all when that one stops: three small messages per beat.
    """

    _BEATS = 8
    """Per timeout."""

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
            if beat != last or beat == "finished":  # one that never beat counts as silent from the start
                last, since = beat, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._set("failed", f"process {self._next} gives no sign of life")
            if failed := self._get("failed"):
                self._exit(failed)

    def _finish(self) -> None:
        """On an orderly exit, before JAX's shutdown barrier: silence is no death any more."""
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
        log.error("%s: leaving with exit code %d, to be started again", reason, PeerFailed.exit_code)
        logging.shutdown()
        os._exit(PeerFailed.exit_code)


def _number(*names: str) -> int:
    for name in names:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise InputError(f"{name}={os.environ[name]}: expected a number")
            return int(os.environ[name])
    raise InputError(f"MAVERICK_COORDINATOR is set, but neither {' nor '.join(names)} is")

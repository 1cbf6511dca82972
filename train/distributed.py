"""Jobs of several processes: how they find each other, and how one leaves without hanging on the others."""

import logging
import os
import sys
from typing import NoReturn

import jax

from maverick_jax.errors import InputError, MaverickError, PeerFailed

log = logging.getLogger(__name__)

# Statuses of a runtime error that are this process's own doing, not the end of another process.
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION", "NOT_FOUND")


def initialize_from_environment() -> None:
    """Joins the job described by the environment; does nothing when it describes none. Call before any use of JAX.

    MAVERICK_COORDINATOR (host:port of process 0), and MAVERICK_NUM_PROCESSES and MAVERICK_PROCESS_ID or else
    SLURM_NTASKS and SLURM_PROCID. Raises InputError when the description is incomplete.
    """
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


def _number(*names: str) -> int:
    for name in names:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise InputError(f"{name}={os.environ[name]}: expected a number")
            return int(os.environ[name])
    raise InputError(f"MAVERICK_COORDINATOR is set, but neither {' nor '.join(names)} is")

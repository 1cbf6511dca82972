"""Jobs of several processes: they connect, detect a dead process, and exit without waiting for it."""

import logging
import os
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import jax

from maverick_jax.checkpoint.lease import release_all
from maverick_jax.errors import HUNG, INTERRUPTED, InputError, MaverickError, PeerFailed
from maverick_jax.progress import number_lines
from maverick_jax.settings.redaction import redact
from train.faults.at_once import NOTHING_LOST, leaves_at_once
from train.faults.peers import Peers
from train.faults.signals import keep_answering
from train.faults.stacks import write_stacks
from train.goodput import timeline

log = logging.getLogger(__name__)

EVERYWHERE = ("", "*", "0.0.0.0", "::", "[::]")
"""Hosts that mean all interfaces of a machine."""
_peers: Peers | None = None
_checkpoints: pathlib.Path | None = None
_TELLING = 10.0
"""Longest time for which a process that ends tells the others, in seconds."""

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
    with leaves_at_once(NOTHING_LOST):
        _connect(coordinator, num_processes, process_id)
    _number_lines(process_id)
    global _peers
    _peers = Peers(process_id, num_processes, peer_timeout, coordinator, _restart, _write_stacks)
    _peers.start()


def _connect(coordinator: str, num_processes: int, process_id: int) -> None:
    """Waits until all processes are there."""
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        # the default binds to every interface, and the service has no authentication
        coordinator_bind_address=coordinator,
        cluster_detection_method="deactivate",
    )
    keep_answering()  # JAX has installed a handler


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


def exit_code_of(error: BaseException) -> int | None:
    """The exit code of a process after `error`; None for a bug, which should show its traceback."""
    if isinstance(error, MaverickError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.distributed.is_initialized():
        return None if str(error).startswith(_OWN_FAULT) else PeerFailed.exit_code
    return None


def ending(error: BaseException) -> tuple[int | None, str]:
    """The exit code of a process after the error that ends it, as `exit_code_of`, and what it says. In a job of several
    its number comes first, and an error that the death of another process caused names that process."""
    code, text = exit_code_of(error), redact(str(error))
    if not jax.distributed.is_initialized():
        return code, text
    if code == PeerFailed.exit_code and _peers is not None:
        first = text.splitlines()[0] if text else type(error).__name__
        code, found = _peers.lost()
        text = f"{found}; {_restart()} ({first[:200]})"
        if code == HUNG:
            _write_stacks(f"{found}. This is process {jax.process_index()}, which ends too; where its threads were:\n")
    return code, f"[{jax.process_index()}] {text}"


def stops_all() -> None:
    """Tells the other processes of the job that this one was asked to stop, and has nothing to save."""
    if _peers is not None:
        _briefly(_peers.leave_stopped)


def hung(message: str) -> None:
    """Tells the other processes of the job that this one hangs, or waits for one that does."""
    if (peers := _peers) is not None:
        _briefly(lambda: peers.leave_hung(message))


def _briefly(tell: Callable[[], object]) -> None:
    """Process 0 may be frozen, and then does not answer."""
    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    thread.join(_TELLING)


def _write_stacks(message: str) -> None:
    folder = None if _checkpoints is None else _checkpoints.parent
    write_stacks(message, folder and folder / f"stacks-{jax.process_index()}.txt")


def leave(code: int) -> NoReturn:
    """Ends the process with `code`.

    In a job of several processes, an error ends the process at once: an ordinary exit waits at a barrier that the other
    processes may never reach, and is then aborted with another code.
    """
    if jax.distributed.is_initialized() and _peers is not None and (_peers.over or code not in (0, 75)):
        if not _peers.over:
            _peers.leave_with_error()
        release_all()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def leave_after(error: BaseException) -> NoReturn:
    """Ends the process of a job with what it says of `error`: a message, or the traceback of a bug."""
    code, text = ending(error)
    if code is None:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    else:
        print(text, file=sys.stderr)
    timeline.leaving(type(error).__name__)
    leave(code)


def _number(*names: str) -> int:
    for name in names:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise InputError(f"{name}={os.environ[name]}: expected a number")
            return int(os.environ[name])
    raise InputError(f"MAVERICK_COORDINATOR is set, but neither {' nor '.join(names)} is")

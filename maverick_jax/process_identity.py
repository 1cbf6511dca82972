"""Names a process, so that others on its machine know whether it still runs; numbers of processes are given again."""

import dataclasses
import os
import pathlib
import socket


@dataclasses.dataclass(frozen=True)
class ProcessIdentity:
    """One process of one machine."""

    machine: str
    """Equal only for processes that see each other's process ids."""
    pid: int
    started: int | None
    """Start of the process in clock ticks since the machine's; None: unknown."""

    @classmethod
    def here(cls) -> "ProcessIdentity":
        return cls(machine(), os.getpid(), started(os.getpid()))

    @property
    def has_ended(self) -> bool | None:
        """Whether the process has ended; None if it cannot be known here."""
        if self.machine != machine():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # another user's
        return self.started is not None and started(self.pid) != self.started


def machine() -> str:
    """Names the machine, since it was started, and the process namespace in it; the host where that is unknown."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> int | None:
    """Start of a process in clock ticks since the machine's; None where it is unknown, and for a zombie."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None

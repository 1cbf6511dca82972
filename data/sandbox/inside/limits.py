"""Limits of a process and of all that it starts; they cannot be raised again."""

import resource


def apply(memory, processes, file_bytes, seconds):
    """memory: bytes of address space; processes: of the sandbox; file_bytes: of one file; seconds: of CPU time."""
    values = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in values.items():
        resource.setrlimit(kind, (value, value))

"""Starts Python in a sandbox of bubblewrap: namespaces of its own for users, processes, network, mounts and names; the
interpreter read-only, a small folder in memory, nothing else; no capabilities, and a seccomp filter."""

import contextlib
import dataclasses
import functools
import importlib.resources
import os
import pathlib
import platform
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from data.sandbox import seccomp
from maverick_jax.errors import InputError

BOX, STAGE = "/box", "/mnt/python"
_LOWER = f"""
mount -t tmpfs none /mnt && mkdir {STAGE} && mount --bind "$1" {STAGE} && shift &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""
"""Root's way to start bwrap, in a mount namespace of its own."""
KILL_SECONDS = 5
"""Longest wait for killed processes to end."""
INSIDE = ("limits.py", "wire.py")
"""Modules that every program inside can import."""


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
    """What a program may use."""

    seconds: int = 10
    """Of wall time for program and tests together, and of CPU time for each process."""
    memory: int = 2 << 30
    """Bytes of address space of each process, and of resident memory of all of them."""
    processes: int = 64
    file_bytes: int = 10 << 20
    """Of one file."""
    folder_bytes: int = 64 << 20
    """Of all files."""

    def arguments(self) -> list[str]:
        """As `inside.limits.apply` takes them."""
        return [str(value) for value in (self.memory, self.processes, self.file_bytes, self.seconds)]


class Streams(NamedTuple):
    """Descriptors, or constants of `subprocess`."""

    stdin: int = subprocess.DEVNULL
    stdout: int = subprocess.DEVNULL
    stderr: int = subprocess.DEVNULL


SILENT = Streams()


@functools.cache
def executable() -> str:
    """The path of bwrap. Raises InputError where there can be no sandbox."""
    if sys.platform != "linux" or platform.machine() not in seccomp.ARCHITECTURES:
        known = " or ".join(seccomp.ARCHITECTURES)
        raise InputError(f"a sandbox needs Linux on {known}; this is {sys.platform} on {platform.machine()}")
    if (found := shutil.which("bwrap")) is None:
        raise InputError("a sandbox needs bwrap, of the package bubblewrap (0.8 or newer), which is not installed")
    return found


@contextlib.contextmanager
def started(
    main: str, files: Mapping[str, str], passed: Sequence[int], limits: SandboxLimits, streams: Streams = SILENT
) -> Iterator[subprocess.Popen]:
    """Runs `inside/MAIN` with `files` (name -> text) beside it. It inherits the descriptors `passed`, whose numbers are
    its arguments. When the block ends, everything in the sandbox is killed."""
    folder = importlib.resources.files("data.sandbox.inside")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in (main, *INSIDE)} | dict(files)
    with contextlib.ExitStack() as stack:
        held = {name: _held(stack, text.encode("utf-8", errors="replace")) for name, text in texts.items()}
        rules = _held(stack, seccomp.program(platform.machine()))
        life, alive = os.pipe()
        stack.callback(os.close, life)
        command = [*_as_nobody(), *_walls(limits), "--seccomp", str(rules)]
        for name, descriptor in held.items():
            command += ["--perms", "0444", "--ro-bind-data", str(descriptor), f"{BOX}/{name}"]
        command += ["--remount-ro", "/", "--", _interpreter(), "-I", "-S", f"{BOX}/{main}"]
        command += [*map(str, passed), *limits.arguments()]
        process = subprocess.Popen(
            command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd="/", start_new_session=True,
            pass_fds=[*held.values(), rules, alive, *passed], **streams._asdict(),
        )  # fmt: skip
        os.close(alive)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            _wait_for_end(life)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


def _wait_for_end(life: int) -> None:
    """Waits until no process of a killed sandbox is left: `life` is a pipe whose other end each of them holds, unless
    it closed it. Raises RuntimeError if some are left after `KILL_SECONDS`."""
    deadline = time.monotonic() + KILL_SECONDS
    while (left := deadline - time.monotonic()) > 0 and select.select([life], [], [], left)[0]:
        if not os.read(life, 1 << 16):
            return
    raise RuntimeError(f"processes of a sandbox did not end within {KILL_SECONDS} s after they were killed")


def _as_nobody() -> list[str]:
    """The command that another is appended to, so that root runs it as nobody, to whom limits of processes apply, and
    with the interpreter where nobody can reach it. Nothing for other users."""
    if os.geteuid() != 0:
        return []
    if missing := [name for name in ("unshare", "setpriv", "mount") if shutil.which(name) is None]:
        raise InputError(f"a sandbox that root starts needs {missing[0]}, of util-linux")
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", _LOWER, "sh", _prefix()]


def _walls(limits: SandboxLimits) -> list[str]:
    command = [executable(), "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    command += ["--new-session", "--cap-drop", "ALL", "--clearenv", "--hostname", "box"]
    for path in ("/usr", *_linked()):
        command += ["--ro-bind", path, path]
    if not pathlib.Path(_prefix()).is_relative_to("/usr"):
        command += ["--ro-bind", STAGE if os.geteuid() == 0 else _prefix(), _prefix()]
    for name, target in _links().items():
        command += ["--symlink", target, name]
    command += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    command += ["--size", str(limits.folder_bytes), "--tmpfs", "/tmp", "--dir", BOX, "--chdir", "/tmp"]
    return command


def _links() -> dict[str, str]:
    return {name: os.readlink(name) for name in ("/lib", "/lib64", "/bin") if os.path.islink(name)}


def _linked() -> list[str]:
    return [name for name in ("/lib", "/lib64", "/bin") if os.path.isdir(name) and not os.path.islink(name)]


def _prefix() -> str:
    """Where the interpreter and its library lie."""
    return os.path.realpath(sys.base_prefix)


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _held(stack: contextlib.ExitStack, content: bytes) -> int:
    """A descriptor of a file in memory that is read from its beginning."""
    descriptor = os.memfd_create("box")
    stack.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def resident_bytes(process: int) -> int:
    """Memory of a process and all its descendants, in bytes, shared pages counted in each."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = pathlib.Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents[int(name)], pages[int(name)] = int(fields[1]), int(fields[21])
    total, todo = 0, {process}
    while todo:
        total += sum(pages.get(one, 0) for one in todo)
        todo = {child for child, parent in parents.items() if parent in todo}
    return total * os.sysconf("SC_PAGE_SIZE")

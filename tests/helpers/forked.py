"""Processes that begin with everything imported: forked from one that has the packages but no devices yet.

A start of Python with JAX, Orbax and Grain takes seconds, in which nothing of interest can be killed. A test that
starts hundreds of processes forks them instead; each is a process of its own, with its own devices and job.

python -m tests.helpers.forked      reads a request per line of stdin, and writes a line per process that ends
"""

import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Forked:
    """A process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, code: int) -> None:
        self.returncode = code
        self._ended.set()


class Nursery:
    """Starts processes that run `maverick`, until it is closed."""

    def __init__(self, environment: Mapping[str, str]):
        """environment: of all of them; what JAX and NumPy read when they are imported must be here."""
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.forked"], env=dict(environment), cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._running: dict[int, Forked] = {}
        self._begun: list[Forked] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="forked", daemon=True)
        self._reader.start()

    def start(self, words: Sequence[object], log: pathlib.Path, devices: int, **environment: object) -> Forked:
        """`maverick WORDS` on simulated devices; its output is appended to `log`."""
        variables = {name: str(value) for name, value in environment.items()}
        request = {"words": [str(w) for w in words], "log": str(log), "devices": devices, "environment": variables}
        assert self._parent.stdin is not None
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        with self._news:
            assert self._news.wait_for(lambda: self._begun or self._parent.poll() is not None, 600)
            assert self._begun, "the parent of forked processes has ended"
            return self._begun.pop()

    def close(self) -> None:
        for process in list(self._running.values()):
            process.kill()
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait()
        self._reader.join()
        self._parent.stdout.close()

    def _read(self) -> None:
        assert self._parent.stdout is not None
        for line in self._parent.stdout:
            news = json.loads(line)
            with self._news:
                if "begun" in news:
                    process = self._running[news["begun"]] = Forked(news["begun"])
                    self._begun.append(process)
                else:
                    self._running.pop(news["ended"]).ended(news["code"])
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


@contextlib.contextmanager
def nursery(environment: Mapping[str, str]) -> Iterator[Nursery]:
    found = Nursery(environment)
    try:
        yield found
    finally:
        found.close()


# ---- the parent ------------------------------------------------------------------------------------------------------


def serve() -> None:
    _import_everything()
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], 0.02)
        if readable:
            if not (line := sys.stdin.readline()):
                break
            _begin(json.loads(line))
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _import_everything() -> None:
    import launch.cli  # noqa: F401
    import tests.helpers.integer_model  # noqa: F401
    import train.run  # noqa: F401


def _tell(**news: object) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def _begin(request: dict) -> None:
    if pid := os.fork():
        _tell(begun=pid)
        return
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((null, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.environ.update(request["environment"])
    sys.argv = ["maverick", *request["words"]]
    import jax

    from launch.cli import main

    jax.config.update("jax_num_cpu_devices", request["devices"])
    sys.exit(main(request["words"]))


if __name__ == "__main__":
    serve()

"""A process that holds the lease on a directory until it is killed: `python -m tests.helpers.lease_holder FOLDER`."""

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def other_process(directory: pathlib.Path) -> Iterator[subprocess.Popen]:
    """Another process holds the lease on `directory` inside the block; at its end it is killed, and leaves its file."""
    command = [sys.executable, "-m", "tests.helpers.lease_holder", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


if __name__ == "__main__":
    from maverick_jax.checkpoint.lease import take

    lease = take(sys.argv[1])
    print("held", flush=True)
    sys.stdin.read()

"""A server on loopback that speaks S3 (moto), for tests of object stores, which are skipped where it is not
installed. `make stores` installs it in an environment of its own, since its packages do not fit those of the lock."""

import contextlib
import os
import pathlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

from tests.helpers.small_run import REPOSITORY, free_port

BUCKET = "bucket"
PYTHON = REPOSITORY / ".cache" / "stores" / "bin" / "python"
SECONDS = 300


@contextlib.contextmanager
def object_server(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """The environment that leads to the server, which has one bucket. Its log is in `folder`."""
    if not PYTHON.exists():
        pytest.skip("no server that speaks S3 is installed: `make stores`")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MOTO_"))}
    with (folder / "moto.log").open("w") as log:
        server = subprocess.Popen(
            [str(PYTHON), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log, stderr=log, env=kept, cwd=folder,
        )  # fmt: skip
    try:
        _await(url, server)
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=60).close()
        yield {
            "AWS_ACCESS_KEY_ID": "canary-key-id",
            "AWS_SECRET_ACCESS_KEY": "canary-secret-key",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
        }
    finally:
        server.kill()
        server.wait()


def _await(url: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + SECONDS
    while True:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < end, "the server never answered"
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)

"""What hostile requests cost a server with the limits that users have: memory, and time, which is shown (`-s`)."""

import pathlib
import subprocess
import sys
import time

import pytest

from launch.serve.limits import LIMITS
from tests.helpers.serving import Client
from tests.launch.serve.test_guard import data_picture, hostile

ROOT = pathlib.Path(__file__).resolve().parents[3]
MOST = 256 << 20
"""Bytes by which no request may raise the server's peak."""
CHAT = "/v1/chat/completions"


@pytest.fixture
def server():
    """A client, and the peak of the server's resident bytes since the last call."""
    command = [sys.executable, "-m", "tests.helpers.lone_server"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin
        client, folder = Client(int(process.stdout.readline()), None, None), pathlib.Path(f"/proc/{process.pid}")  # pyright: ignore

        def value(line: str) -> int:
            return int((folder / "status").read_text().split(f"{line}:")[1].split()[0]) * 1024

        def peak() -> int:
            found = value("VmHWM")
            (folder / "clear_refs").write_text("5")
            return found

        yield client, peak, lambda: value("VmRSS")
        process.stdin.close()


def many_keys(count: int) -> bytes:
    return b'{"x":{' + b",".join(b'"%d":[]' % i if i < 199_000 else b'"%d":0' % i for i in range(count)) + b"}}"


def largest() -> dict[str, tuple[int, tuple]]:
    """Bodies as long as the limit allows, made of what costs most to read."""
    fill = lambda begin, piece, end: begin + piece * ((LIMITS.body - len(begin) - len(end)) // len(piece)) + end
    noise = bytes(range(1, 250)) * (LIMITS.body // 400)
    return {
        "32 MiB of spaces": (400, ("POST", CHAT, fill(b"{", b" ", b""))),
        "32 MiB of open lists": (400, ("POST", CHAT, fill(b'{"a":', b"[", b""))),
        "32 MiB of empty objects": (400, ("POST", CHAT, fill(b'{"a":[', b"{},", b"1]}"))),
        "32 MiB of numbers": (400, ("POST", CHAT, fill(b'{"a":[', b"1,", b"1]}"))),
        "32 MiB of keys": (400, ("POST", CHAT, fill(b"{", b'"":1,', b'"b":1}'))),
        "most keys": (400, ("POST", CHAT, many_keys(LIMITS.texts - 1))),
        "most numbers": (400, ("POST", CHAT, b'{"a":[' + b"123456," * (LIMITS.items - 1) + b"1]}")),
        "32 MiB of escapes": (400, ("POST", CHAT, fill(b'{"a":"', b"\\u00e4", b'"}'))),
        "a picture of 22 MiB that is none": (400, ("POST", CHAT, data_picture(b"\x89PNG\r\n\x1a\n" + noise))),
    }


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_no_hostile_request_takes_much_memory(server):
    client, peak, resident = server
    peak()
    costs = {}
    for name, (status, given) in {**hostile(client), **largest()}.items():
        if name == "body beyond the limit":
            given = ("POST", CHAT, b" " * (LIMITS.body + 1))
        before, began = resident(), time.perf_counter()
        answer = client.send(*given)
        costs[name] = time.perf_counter() - began, peak() - before
        assert answer.status == status, f"{name}: {answer.content[:300]!r}"
    for name, (seconds, grown) in sorted(costs.items(), key=lambda item: -item[1][1]):
        print(f"{name:36} {seconds * 1000:8.1f} ms {grown / (1 << 20):8.1f} MiB")
    assert max(grown for _, grown in costs.values()) < MOST, costs
    assert client.get("/v1/models").status == 200

"""The listening socket: this machine alone, unless one says otherwise."""

import pathlib

import pytest

from launch.serve.http import bind, hosts_of
from maverick_jax.errors import InputError
from tests.helpers.serving import serving


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_other_addresses_need_to_be_asked_for(host):
    with pytest.raises(InputError, match="add --remote"):
        bind(host, 0)


@pytest.mark.parametrize("host", ["example.com", "", "127.1", "localhost.evil.example"])
def test_names_are_no_addresses(host):
    with pytest.raises(InputError, match="expected an IP address"):
        bind(host, 0)


def test_a_port_in_use_is_named():
    with bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match="choose another with --port"):
        bind("127.0.0.1", taken.getsockname()[1])


def test_hosts_are_the_names_of_loopback_with_the_port():
    with bind("localhost", 0) as listening:
        port = listening.getsockname()[1]
        assert hosts_of(listening) == {f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"}
        assert {"box.example", f"box.example:{port}"} <= hosts_of(listening, ["Box.example"])


def listeners() -> set[tuple[str, int]]:
    """(address in hexadecimal, port) of the sockets of this machine that listen."""
    found = set()
    for name in ("tcp", "tcp6"):
        path = pathlib.Path("/proc/net") / name
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            address, state = line.split()[1], line.split()[3]
            if state == "0A":
                found.add((address.split(":")[0], int(address.split(":")[1], 16)))
    return found


def test_only_this_machine_reaches_a_server():
    if not pathlib.Path("/proc/net/tcp").exists():
        pytest.skip("needs Linux's list of sockets")
    with serving() as client:
        assert {address for address, port in listeners() if port == client.port} == {"0100007F"}

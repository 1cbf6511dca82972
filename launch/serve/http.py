"""The listening socket, and uvicorn over it."""

import ipaddress
import socket
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from launch.serve.guard import LOOPBACK
from launch.serve.limits import RequestLimits
from maverick_jax.errors import InputError

HEADER_BYTES = 64 << 10
"""Most bytes of a request's line and headers."""


def bind(host: str, port: int, *, remote: bool = False) -> socket.socket:
    """A listening socket. Raises InputError for an address that other machines reach, unless `remote`, and for one that
    is in use."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InputError(f"--host {host!r:.80}; expected an IP address, such as 127.0.0.1") from None
    if not address.is_loopback and not remote:
        raise InputError(f"--host {host}: other machines reach this address; add --remote if they shall")
    listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(address), port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise InputError(f"port {port} of {host}: {error.strerror}; choose another with --port") from None
    return listening


def hosts_of(listening: socket.socket, more: Sequence[str] = ()) -> set[str]:
    """Values of `Host` that name a listening socket; `more`: further names, with or without a port."""
    port = listening.getsockname()[1]
    named = {f"{name}:{port}" for name in LOOPBACK}
    if port == 80:  # clients leave it out
        named |= set(LOOPBACK)
    return named | {name.lower() for name in more} | {f"{name.lower()}:{port}" for name in more}


def http_server(app: ASGIApp, limits: RequestLimits) -> uvicorn.Server:
    """A server for `app`, which logs neither requests nor its own name. `run(sockets=[...])` serves."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="h11",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)

"""On which addresses a process listens, as the kernel tells."""

import ipaddress
import os
import pathlib
import struct
from typing import NamedTuple

_LISTEN = "0A"


class Address(NamedTuple):
    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int


def listeners(pid: int) -> list[Address]:
    """The addresses on which a process listens. Linux alone."""
    links = []
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(path))
        except FileNotFoundError:  # closed meanwhile
            continue
    mine = {link[8:-1] for link in links if link.startswith("socket:")}
    tables = [pathlib.Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    return [_parsed(row[1]) for row in rows if row[3] == _LISTEN and row[9] in mine]


def is_loopback(address: Address) -> bool:
    host = address.host
    return (getattr(host, "ipv4_mapped", None) or host).is_loopback


def _parsed(text: str) -> Address:
    """The kernel writes each word of an address as a number of the machine's byte order."""
    host, _, port = text.partition(":")
    words = [int(host[i : i + 8], 16) for i in range(0, len(host), 8)]
    return Address(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), int(port, 16))

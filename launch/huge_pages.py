"""Memory in huge pages: on a CPU a step then takes a sixth less (benchmarks/README.md)."""

import os
import pathlib
import re
import sys

TUNABLE = "glibc.malloc.hugetlb"
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
OLDEST = (2, 35)  # the first glibc that has the tunable


def use_huge_pages() -> None:
    """Starts this process anew, once, with the C library told to ask for huge pages, which it reads only as it starts.

    The process id, arguments and open files stay. Does nothing where GLIBC_TUNABLES says either way, where the kernel
    gives huge pages without being asked or never, and with another C library.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not _given_when_asked() or _glibc() < OLDEST:
        return
    asked = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": asked})


def _given_when_asked() -> bool:
    try:
        return "[madvise]" in SWITCH.read_text()
    except OSError:  # no Linux, or hidden in a container
        return False


def _glibc() -> tuple[int, ...]:
    """Its version; () is another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (AttributeError, ValueError, OSError):
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) if name == "glibc" else ()

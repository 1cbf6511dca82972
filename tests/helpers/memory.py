"""A pytest plugin that frees memory after test files and limits each worker of the suite to 2 GiB.

The summary reports the peak of each worker; far above the limit the session fails if `CI` is set.
"""

import ctypes
import gc
import os
import pathlib

import jax
import pytest

LIMIT = 2 << 30
"""Resident bytes that a worker should not exceed; reported in red above it."""
MARGIN = 1 << 29
"""In CI the session fails only if a worker exceeds the limit by more than this, since peaks differ between processors
and library versions."""
AFTER_A_FILE, AFTER_A_TEST = 3 << 28, 1 << 30
"""Resident bytes above which memory is freed after a test file and after a test. Freeing takes a second, and some
programs are then compiled again."""
GROWTH = 1 << 28
"""Minimum growth, in bytes, since memory was last freed; with less growth, freeing would not help."""

_peaks: dict[str, int] = {}
"""Peak of resident bytes: of this process and, in the process that distributes the tests, of each worker."""
_kept = 0
"""Resident bytes after memory was last freed."""


def resident(line: str) -> int:
    """Resident bytes of this process: `VmRSS` is the current value, `VmHWM` the peak; 0 if the system does not report
    it."""
    status = pathlib.Path("/proc/self/status")
    return int(status.read_text().split(f"{line}:")[1].split()[0]) * 1024 if status.exists() else 0


def give_back(above: int) -> None:
    """Frees memory if more than `above` bytes are resident. Most growth is compiled programs, which JAX keeps together
    with everything that their functions close over."""
    global _kept
    if resident("VmRSS") > max(above, _kept + GROWTH):
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _kept = resident("VmRSS")


def pytest_runtest_logfinish():
    # after each test, since tests of memory reset the mark
    _peaks["main"] = max(_peaks.get("main", 0), resident("VmHWM"))
    give_back(AFTER_A_TEST)


@pytest.fixture(scope="module", autouse=True)
def after_a_file():
    yield
    give_back(AFTER_A_FILE)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_bytes"] = _peaks.get("main", 0)
    elif os.environ.get("CI") and max(_peaks.values(), default=0) > LIMIT + MARGIN:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_bytes", 0)


def pytest_terminal_summary(terminalreporter):
    for name, peak in sorted(_peaks.items()):
        over = peak > LIMIT
        told = f"{name}: at most {peak / (1 << 30):.2f} GiB resident" + f", over {LIMIT >> 30} GiB" * over
        terminalreporter.write_line(told, red=over)

"""Who answers a signal, and that handlers of C are reached."""

import os
import signal
import subprocess
import sys
import threading
import time

from tests.helpers.small_run import PATIENCE, REPOSITORY
from train.faults.signals import answers


def until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_last_who_asked_answers_and_then_the_one_before():
    first, second = [], []
    with answers(first.append):
        with answers(second.append):
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: second)
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: first)
    assert (first, second) == ([signal.SIGINT], [signal.SIGTERM])


def test_it_does_nothing_outside_the_main_thread():
    seen = []

    def other() -> None:
        before = signal.getsignal(signal.SIGTERM)
        with answers(print):
            seen.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [True]


CODE = """
import ctypes, os, signal, sys, time
from train.faults import signals
libc = ctypes.CDLL(None)
got = []
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: got.append(number))
install = lambda: libc.signal(signal.SIGTERM, HANDLER)
answer = lambda number: (got.append("answered"), signals.pass_on(number))
if sys.argv[1] == "before":
    install()
with signals.answers(answer):
    if sys.argv[1] == "meanwhile":
        install()
        signals.keep_answering()
    os.kill(os.getpid(), signal.SIGTERM)
    while len(got) < 2:
        time.sleep(0.01)
assert got == ["answered", 15], got
os.kill(os.getpid(), signal.SIGTERM)
assert got == ["answered", 15, 15], got
"""


def test_a_handler_of_c_is_reached_and_is_back_afterwards():
    """As JAX has one in a job of several processes; installed before or meanwhile."""
    for when in ("before", "meanwhile"):
        command = [sys.executable, "-c", CODE, when]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE)
        assert done.returncode == 0, (when, done.stderr)

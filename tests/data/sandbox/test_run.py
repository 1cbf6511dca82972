"""Sandboxes: right and wrong programs, values that travel, and programs that attack."""

import os
import pathlib
import time
import uuid

import pytest

from data.sandbox import run
from data.sandbox.bubblewrap import SandboxLimits, executable, resident_bytes
from data.sandbox.run import ProgramTests, Verdict, check
from maverick_jax.errors import InputError
from tests.helpers.hostile_programs import PROGRAMS
from tests.helpers.sandboxes import needs_sandbox
from tests.helpers.small_run import PATIENCE

FAST = SandboxLimits(seconds=4)


def judged(program: str, text: str, limits: SandboxLimits = run.DEFAULT) -> Verdict:
    return check(program, ProgramTests(text, {"f": "f"}, ["f"]), limits)


@needs_sandbox
def test_right_programs_pass_and_wrong_ones_say_why():
    assert judged("def f(x): return x + 1", "assert f(1) == 2") == (True, "")
    assert judged("def f(x): return x", "assert f(1) == 2") == (False, "a test fails")
    assert judged("def f(x): return x", "assert f(1) == 2, 'one more'").reason == "a test fails: one more"
    assert judged("def f(x):\n    return 1 / 0", "f(1)").reason == "a test fails: ZeroDivisionError: division by zero"
    assert judged("def g(): pass", "f()").reason == "the program defines no f"
    assert judged("def f(:", "f()").reason.startswith("the program does not run: SyntaxError")
    assert judged("def f(): import numpy", "f()").reason.startswith("a test fails: ModuleNotFoundError")


@needs_sandbox
def test_values_travel_and_other_objects_stay_with_the_program():
    program = """
import collections, decimal, fractions
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
def f(x): return x
def total(pairs): return sum(p.a + p.b for p in pairs)
def many(n):
    for i in range(n): yield i
def counted(text): return collections.Counter(text)
def third(): return fractions.Fraction(1, 3)
"""
    text = """
import math, fractions
plain = (None, True, -2 ** 70, 1.5, "a\\n\\u00e9", b"\\x00", 2j, frozenset("ab"))
for x in (*plain, (1, [2, {"a": (3,)}]), {1: {2, 3}}, {(1, 2): []}):
    assert f(x) == x and type(f(x)) is type(x), x
assert math.isnan(f(math.nan)) and f(math.inf) == math.inf
assert total([Pair(1, 2), Pair(3, b=4)]) == 10
assert list(many(3)) == [0, 1, 2] and counted("aab") == {"a": 2, "b": 1} and third() == fractions.Fraction(1, 3)
"""
    names = ("f", "Pair", "total", "many", "counted", "third")
    assert check(program, ProgramTests(text, {name: name for name in names})) == (True, "")


@needs_sandbox
@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_programs_fail(name):
    """Their processes have ended too: `check` raises otherwise."""
    verdict = judged(PROGRAMS[name], "assert f() == 42", FAST)
    assert not verdict.passed and verdict.reason
    assert len(PROGRAMS) >= 40


@needs_sandbox
@pytest.mark.parametrize("name", ["passwords", "is equal to everything", "answers before it is asked", "fork bomb"])
def test_some_hostile_programs_fail(name):
    assert not judged(PROGRAMS[name], "assert f() == 42", SandboxLimits(seconds=2)).passed


@needs_sandbox
def test_a_daemon_that_closed_all_files_ends_with_the_sandbox():
    mark = f"mark-{uuid.uuid4().hex}"
    program = f"""
import os, sys
def f():
    if os.fork() == 0:
        os.setsid()
        os.closerange(0, 64)
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(99) # {mark}"])
    import time; time.sleep(0.5)
    return any("{mark}" in open(f"/proc/{{p}}/cmdline").read() for p in os.listdir("/proc") if p.isdecimal())
"""
    assert judged(program, "assert f()", SandboxLimits(seconds=60)).passed, "the daemon runs at first"
    end = time.monotonic() + PATIENCE
    while any(mark.encode() in _command(p) for p in os.listdir("/proc") if p.isdecimal()):
        assert time.monotonic() < end, "the daemon still runs"
        time.sleep(0.05)


def _command(process: str) -> bytes:
    try:
        return pathlib.Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_memory_of_a_process_counts_its_descendants():
    assert resident_bytes(os.getpid()) > 10 << 20
    assert resident_bytes(1 << 30) == 0


def test_without_bubblewrap_it_is_refused(monkeypatch):
    executable.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="needs bwrap"):
        executable()
    executable.cache_clear()

"""Which process of a job is dead, how soon the others notice, and with which code they leave."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from maverick_jax.process_identity import ProcessIdentity, started
from train.faults import peers
from train.faults.peers import FINISHED, LEFT, LOST, Peers

HERE = socket.gethostname()


class Store(dict):
    """The job's key-value store, in one process."""

    def key_value_set(self, key, value, allow_overwrite):
        self[key] = value

    def key_value_try_get(self, key):
        if key not in self:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return self[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]

    def wait_at_barrier(self, name, timeout):
        self[name] = "passed"


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def watch(monkeypatch):
    """`watch(me, **others)`: process `me` of 3, whose heartbeats are milliseconds; `others` are in the store."""
    made = []
    monkeypatch.setattr(peers.atexit, "register", lambda f: None)
    monkeypatch.setattr(peers.logging, "shutdown", lambda: None)
    monkeypatch.setattr(peers, "_PARTING", 0.01)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def left(code):
        made[-1].codes.append(code)
        raise Left

    monkeypatch.setattr(peers.os, "_exit", left)

    def make(me: int, timeout: float = 0.05, **others) -> Peers:
        store = Store({f"maverick/{key.replace('_', '/')}": value for key, value in others.items()})
        monkeypatch.setattr(peers.global_state, "client", store)
        made.append(Peers(me, 3, timeout, "head:1"))
        made[-1].codes = []
        made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one._finished.set()
        one.join()


def at(host: str, pid: int = 7, machine: str = "another", began: int | None = 1) -> str:
    return json.dumps({"host": host, "machine": machine, "pid": pid, "started": began})


@pytest.fixture
def gone():
    """A process of this machine that has ended, as its entry in the store."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = dataclasses.replace(ProcessIdentity.here(), pid=child.pid, started=started(child.pid))
    child.kill()  # a zombie until it is waited for
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield at(HERE, here.pid, here.machine, here.started)
    child.communicate()


def test_a_process_that_does_not_beat_is_the_dead_one(watch):
    found = watch(1, host_2=at("node2"), alive_2="5", alive_0="9")
    assert found.lost() == (76, "process 2 on node2 ended or cannot be reached")
    assert found._store["maverick/ended"] == "76 process 2 on node2 ended or cannot be reached"


def test_a_process_that_lost_another_is_not_the_dead_one(watch):
    found = watch(1, host_2=at("node2"), alive_2=LOST)
    assert found.lost() == (76, "another process ended or cannot be reached")


def test_the_dead_process_is_the_one_that_another_process_found(watch):
    found = watch(1, timeout=5, host_2=at("node2"), alive_2=LOST, ended="76 process 0 on node0 ended")
    assert found.lost() == (76, "process 0 on node0 ended")


def test_a_process_of_this_machine_is_dead_when_it_is_gone(watch, gone):
    """With 76, long before it would have been silent for long enough."""
    found = watch(1, timeout=8, host_0=gone, alive_0="1", host_2=at("node2"))
    found.join()
    assert found.codes == [76]
    assert found._store["maverick/ended"] == f"76 process 0 on {HERE} ended"
    assert found._store["maverick/alive/1"] == LOST


@pytest.mark.parametrize("last", [FINISHED, LOST])
def test_a_process_that_said_that_it_ends_is_not_dead(watch, gone, last):
    found = watch(1, host_2=gone, alive_2=last)
    found._find_those_here()
    assert found._here[2].has_ended and found._gone_from_here() is None


def test_a_process_that_left_with_an_error_leaves_the_others_time(watch, gone, monkeypatch):
    """The error may be that of all, and they may be saving."""
    found = watch(1, timeout=500, host_2=gone, alive_2=LEFT)
    found._find_those_here()
    assert found._gone_from_here() is None
    monkeypatch.setattr(peers, "_GRACE", 0.0)
    time.sleep(0.01)
    assert found._gone_from_here() == 2


def test_after_another_was_asked_to_stop_a_process_leaves_with_75(watch):
    found = watch(1, host_2=at("node2"), ended="75 process 2 was asked to stop")
    found.join()
    assert found.codes == [75]
    also = watch(1, timeout=5, host_2=at("node2"), ended="75 process 2 was asked to stop")
    assert also.lost() == (75, "process 2 was asked to stop")


def test_process_0_leaves_last(watch):
    found = watch(0, timeout=100, alive_1="3", alive_2=LEFT)
    threading.Timer(0.3, lambda: found._store.update({"maverick/alive/1": LOST})).start()
    found.leave_stopped()
    assert found._store["maverick/ended"].startswith("75 process 0") and found._store["maverick/alive/1"] == LOST


def test_process_0_with_an_error_waits_for_those_that_have_the_same_one(watch):
    found = watch(0, timeout=100, alive_1="3", alive_2=LEFT)
    threading.Timer(0.3, lambda: found._store.update({"maverick/alive/1": LEFT})).start()
    found.leave_with_error()
    assert found._store["maverick/alive/1"] == LEFT and "maverick/ended" not in found._store


def test_process_0_ends_after_those_of_its_machine_have(watch, monkeypatch):
    """They have said that they end, and JAX would abort them in the middle of it."""
    monkeypatch.setattr(peers, "_PARTING", 100.0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = ProcessIdentity.here()
    mine = at(HERE, child.pid, here.machine, started(child.pid))
    found = watch(0, timeout=100, host_1=mine, host_2=mine, alive_1=LEFT, alive_2=LEFT)
    threading.Timer(0.3, child.kill).start()
    found.leave_with_error()
    assert found._here[1].has_ended and found._here[2].has_ended
    child.communicate()


def test_process_0_with_an_error_of_its_own_tells_the_others(watch, monkeypatch):
    """JAX would abort them with a C++ stack."""
    monkeypatch.setattr(peers, "_GRACE", 0.01)
    found = watch(0, timeout=1, alive_1="3", alive_2=LEFT)
    found.leave_with_error()
    assert found._store["maverick/ended"] == "76 process 0 ended with an error"
    assert found._store["maverick/alive/0"] == LEFT


def test_an_orderly_exit_waits_for_the_others(watch):
    found = watch(1)
    found._finish()
    assert found._store["maverick/finished"] == "passed" and found._store["maverick/alive/1"] == FINISHED
    assert found.over and not found.codes

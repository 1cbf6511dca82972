"""A process that stays in one phase for too long ends, and says in which."""

import pathlib
import subprocess
import sys
import time

import pytest

from tests.helpers.small_run import finish
from train.faults.hangs import STEP_LEAST, HangsConfig, _Watch
from train.goodput import timeline
from train.goodput.timeline import Timeline

TOY = pathlib.Path(__file__).parents[2] / "helpers" / "toy_run.py"
LIMITS = HangsConfig(start=10, compile=20, data=30, step=40, save=50, restore=60, evaluation=70)


class Watched:
    """A watch on a timeline whose clock only the test moves."""

    def __init__(self, config: HangsConfig, monkeypatch):
        self.now, self.said = 1000.0, []
        self.clock = Timeline(None, lambda: self.now)
        monkeypatch.setattr(timeline, "_running", [self.clock])
        self._watch = _Watch(config, pathlib.Path("/run"), self.clock, lambda *end: self.said.append(end))

    def after(self, seconds: float) -> list:
        """What the watch has said so many seconds later."""
        self.now += seconds
        self._watch.look()
        return self.said


@pytest.mark.parametrize("phase", ["compile", "step", "save", "restore", "evaluation"])
def test_each_phase_has_its_limit(monkeypatch, phase):
    watched, limit = Watched(LIMITS, monkeypatch), getattr(LIMITS, phase)
    with watched.clock.phase(phase, 7):
        assert not watched.after(limit)
        ((message, path),) = watched.after(1)
    assert "process 0 on " in message and f"phase '{phase}' after update 7 has lasted more than" in message
    assert f"guard.hangs.{phase}" in message and path == pathlib.Path("/run/stacks-0.txt")


def test_the_start_has_a_limit(monkeypatch):
    watched = Watched(LIMITS, monkeypatch)
    assert not watched.after(10) and "guard.hangs.start" in watched.after(1)[0][0]


def test_a_wait_for_data_has_a_limit(monkeypatch):
    watched = Watched(LIMITS, monkeypatch)
    watched.clock.is_idle = lambda: True
    with watched.clock.phase("step", 7):
        watched.clock.fetching = time.perf_counter() - 29
        assert not watched.after(0)
        watched.clock.fetching -= 2
        assert "phase 'data' after update 7" in watched.after(0)[0][0]


def test_each_update_is_a_sign_of_life(monkeypatch):
    watched = Watched(LIMITS, monkeypatch)
    with watched.clock.phase("step", 7):
        for step in range(8, 12):
            assert not watched.after(39)
            watched.clock.updated(step)
        assert not watched.after(40) and "after update 11" in watched.after(1)[0][0]


def test_the_limit_of_an_update_is_learned_from_those_before(monkeypatch):
    watched = Watched(LIMITS.model_copy(update={"step": None, "compile": 1000.0}), monkeypatch)
    with watched.clock.phase("step", 0):
        for step, seconds in enumerate([500, 20, 8, 8], 1):
            assert not watched.after(seconds)
            watched.clock.updated(step)
        assert not watched.after(5000) and "learned" in watched.after(1)[0][0]


def test_short_updates_have_a_least_limit():
    assert HangsConfig().budget("step", [0.1] * 50) == ("step", STEP_LEAST)
    assert HangsConfig().budget("step", [0.1] * 2) == ("compile", 7200.0)


def test_the_time_in_which_a_teacher_trains_does_not_count(monkeypatch):
    """Its run has a timeline of its own."""
    watched = Watched(LIMITS, monkeypatch)
    with monkeypatch.context() as inner:
        inner.setattr(timeline, "_running", [watched.clock, Timeline()])
        assert not watched.after(9) and not watched.after(500)
    assert not watched.after(10) and "guard.hangs.start" in watched.after(1)[0][0]


@pytest.mark.parametrize("phase", ["save", "data", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_a_stuck_phase_ends_the_process_with_its_stacks(tmp_path, phase):
    """The process sleeps in that phase after update 6."""
    stuck = {"hang": 7} if phase == "data" else {"stuck": phase}
    options = {"stop": 12, "every": 6, "budget": 3.0, **stuck}
    words = [sys.executable, str(TOY), str(tmp_path), *(f"{key}={value}" for key, value in options.items())]
    with (tmp_path / "log").open("wb") as log:
        assert finish(subprocess.Popen(words, stdout=log, stderr=log)) == 77, (tmp_path / "log").read_text()
    stacks = (tmp_path / "stacks-0.txt").read_text()
    assert f"phase '{phase}' after update 6 has lasted more than" in stacks and "Current thread" in stacks
    assert "toy_run.py" in stacks and stacks.partition("\n")[0] in (tmp_path / "log").read_text()

"""Goodput while a run trains: earlier processes and this one."""

import json

import pytest

from tests.train.goodput.test_ledger import DAY, begun
from train.goodput.live import LiveGoodput
from train.goodput.timeline import Timeline


def test_updates_that_this_process_does_again_are_lost(tmp_path):
    """An earlier process did 15 updates, of which 10 are saved; 40 s later this one goes on from 10."""
    lines = begun("a", 0).updates(1, 10, 20).phase("save", 3).updates(11, 15, 10, kwh=1.5).lines
    (tmp_path / "goodput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    now = [DAY + 50 + 40]
    clock = Timeline(None, lambda: now[0])
    clock.record_to(tmp_path)
    live = LiveGoodput(tmp_path, clock, 10)
    with clock.phase("step", 10):
        now[0] += 20
        clock.updated(20)
        found = live.seconds()
        assert live.line()["goodput"] == pytest.approx(40 / 110, abs=1e-3)
    clock.end("done")
    assert (found["step"], found["lost_work"], found["idle"]) == pytest.approx((40, 10, 40), abs=0.01)
    assert live.before.kwh == 1.5


def test_a_new_run_has_nothing_before_it(tmp_path):
    live = LiveGoodput(tmp_path, Timeline(), 0)
    assert sum(live.before.seconds.values()) == 0 and live.before.kwh is None

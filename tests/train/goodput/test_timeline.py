"""The record of a run's wall time: what is on disk at every moment."""

import json
import threading
import time

import pytest

from train.goodput import timeline
from train.goodput.ledger import read_goodput
from train.goodput.timeline import ALIVE, RECORD, Timeline


class FakeClock:
    def __init__(self):
        self.time = 1.7e9

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return FakeClock()


def spend(clock, line: Timeline, kind, seconds: float) -> None:
    with line.phase(kind):
        clock.time += seconds


def lines(folder) -> list[dict]:
    return [json.loads(text) for text in (folder / RECORD).read_text().splitlines()]


def whole_run(clock, folder) -> Timeline:
    line = Timeline(clock() - 5, clock)  # the process began 5 s ago
    spend(clock, line, "compile", 10)
    line.record_to(folder)
    spend(clock, line, "restore", 2)
    with line.phase("step", 20):
        for step in range(21, 31):
            clock.time += 1
            line.updated(step)
        line.waited(3)
        spend(clock, line, "save", 4)
        clock.time += 6
        line.updated(31)
    return line


def test_what_a_process_does_is_in_the_classes(clock, tmp_path):
    whole_run(clock, tmp_path).end("done")
    found = read_goodput(tmp_path)
    expected = {"init": 5, "compile": 10, "restore": 2, "step": 13, "data_wait": 3, "save": 4}
    assert {name: round(s, 2) for name, s in found.seconds.items() if s > 0.01} == expected
    (attempt,) = found.attempts
    assert (attempt.first_step, attempt.last_step, attempt.reason) == (21, 31, "done")
    assert not (tmp_path / ALIVE).exists()


def test_updates_have_one_line_between_two_phases(clock, tmp_path):
    whole_run(clock, tmp_path).end("done")
    assert [line["steps"] for line in lines(tmp_path) if line.get("class") == "step"] == [[21, 30], [31, 31]]
    assert len(lines(tmp_path)) == 8  # start, init, compile, restore, step, save, step, end


def test_nothing_is_written_before_the_run_is_known_and_what_came_before_is_kept(clock, tmp_path):
    line = Timeline(None, clock)
    spend(clock, line, "compile", 10)
    assert list(tmp_path.iterdir()) == []
    line.record_to(tmp_path)
    assert read_goodput(tmp_path).seconds["compile"] == pytest.approx(10)
    line.end("done")


def test_the_open_interval_of_a_killed_process_is_moved_to_the_record(clock, tmp_path):
    killed = whole_run(clock, tmp_path)
    with killed.phase("save"):
        clock.time += 7
        killed._beat()
    killed._over.set()  # the process is gone
    with (tmp_path / RECORD).open("a") as file:
        file.write('{"half a li')
    clock.time += 100
    after = Timeline(None, clock)
    after.record_to(tmp_path)
    after.end("done")
    found = read_goodput(tmp_path)
    assert found.seconds["save"] == pytest.approx(4 + 7) and found.seconds["idle"] == pytest.approx(100)


def test_a_process_that_lost_the_run_writes_no_more(clock, tmp_path):
    first, second = Timeline(None, clock), Timeline(None, clock)
    first.record_to(tmp_path)
    second.record_to(tmp_path)
    before = lines(tmp_path)
    spend(clock, first, "save", 3)
    first.end("done")
    assert lines(tmp_path) == before
    assert json.loads((tmp_path / ALIVE).read_text())["process"] == second.process
    second.end("done")


def test_a_beat_shows_the_phase_that_goes_on(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "BEAT", 0.01)
    line, seen = Timeline(None, clock), threading.Event()
    line.beside = lambda: (line._phase == "save" and seen.set()) or {"kwh": 2.0}
    line.record_to(tmp_path)
    with line.phase("save"):
        clock.time += 30
        assert seen.wait(60)
        line._beat()
        assert read_goodput(tmp_path).seconds["save"] == 30
    line.end("done")
    assert read_goodput(tmp_path).kwh == 2.0


def test_a_run_inside_a_run_has_its_own_timeline():
    with timeline.timed() as outer:
        with timeline.timed() as inner, timeline.phase("evaluation"):
            assert timeline.current() is inner
            assert "evaluation" in inner.seconds()
        assert timeline.current() is outer
    assert set(outer.seconds()) == {"init", "data_wait"}


def test_the_reason_of_an_error_is_recorded(tmp_path):
    def fail():
        with timeline.timed() as line:
            line.record_to(tmp_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read_goodput(tmp_path).attempts[0].reason == "ZeroDivisionError"


def test_a_process_that_leaves_at_once_says_why(tmp_path):
    with timeline.timed() as line:
        line.record_to(tmp_path)
        timeline.leaving("Watchdog")
    (attempt,) = read_goodput(tmp_path).attempts
    assert attempt.reason == "Watchdog"


def test_a_process_leaves_although_a_thread_hangs_while_it_writes():
    line, holds, over = Timeline(), threading.Event(), threading.Event()

    def hang():
        with line._lock:
            holds.set()
            over.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    holds.wait(60)
    line.end("Watchdog", patience=0.01)
    over.set()
    thread.join()
    assert not line._over.is_set()


def test_a_loader_that_hangs_is_waited_for_while_it_hangs(clock):
    line = Timeline(None, clock)
    with line.phase("step"):
        clock.time += 5
        line.fetching, line.is_idle = time.perf_counter() - 3, lambda: False
        assert line.seconds()["data_wait"] == 0
        line.is_idle = lambda: True
        assert 3 <= line.seconds()["data_wait"] <= 5


def test_a_full_disk_does_not_end_the_run(clock, tmp_path, monkeypatch):
    line = whole_run(clock, tmp_path)
    monkeypatch.setattr(line, "_folder", tmp_path / "gone")
    before, recorded = line.seconds(), (tmp_path / RECORD).read_bytes()
    spend(clock, line, "save", 3)
    line._beat()
    line.end("done")
    assert line._over.is_set() and line.seconds()["save"] == before.get("save", 0.0) + 3
    assert (tmp_path / RECORD).read_bytes() == recorded and not (tmp_path / "gone").exists()

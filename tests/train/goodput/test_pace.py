"""The slow process of a job is named; no process waits for another."""

import logging

import pytest

from train.goodput import pace
from train.goodput.pace import Pace
from train.goodput.timeline import Timeline


@pytest.fixture
def job(monkeypatch):
    """`job(count)`: a Pace for each process of a job, and `tell(rank, step, seconds, blocked)`."""
    values: dict[str, str] = {}
    monkeypatch.setattr(pace, "publish", values.__setitem__)
    monkeypatch.setattr(pace, "published", lambda topic: {key.rpartition("/")[2]: v for key, v in values.items()})
    monkeypatch.setattr(Pace, "SECONDS", 0.0)

    def make(count: int):
        clocks = [Timeline() for _ in range(count)]
        hooks = [Pace(clock, every=2) for clock in clocks]

        def step(number: int, own: list[float], wall: float) -> None:
            """An update of `wall` seconds, of which each process is busy by itself for `own`. Process 0 reads last."""
            for rank in reversed(range(count)):
                clocks[rank].blocked += wall - own[rank]
                monkeypatch.setattr(pace.jax, "process_index", lambda rank=rank: rank)
                hooks[rank].on_metrics(number, {}, wall)

        return hooks, step

    return make


def test_the_process_that_the_others_wait_for_is_named(job, caplog):
    hooks, step = job(4)
    own = [0.01, 0.01, 0.5, 0.02]
    with caplog.at_level(logging.INFO, "train.goodput.pace"):
        for number in range(1, 7):
            step(number, own, 0.6)
    line = hooks[0].line()
    assert line["slowest_rank"] == 2
    assert line["step_seconds_slowest"] == pytest.approx(0.5) and line["step_seconds_median"] == pytest.approx(0.01)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["step 2"]
    assert "process 2 is slow: it takes 0.5 s of an update by itself" in caplog.text
    assert hooks[1].line() == {}


def test_it_is_said_when_it_is_over(job, caplog):
    _, step = job(3)
    with caplog.at_level(logging.INFO, "train.goodput.pace"):
        for number in range(1, 5):
            step(number, [0.01, 0.3, 0.01], 0.4)
        for number in range(5, 9):
            step(number, [0.01, 0.011, 0.01], 0.1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "process 1 is not slow any more" in caplog.text


@pytest.mark.parametrize("own", [[0.01, 0.012, 0.01], [0.001, 0.004, 0.001]])
def test_a_small_difference_is_in_the_metrics_alone(own, job, caplog):
    hooks, step = job(3)
    for number in range(1, 5):
        step(number, own, 0.1)
    assert hooks[0].line()["slowest_rank"] == 1 and caplog.records == []


def test_processes_are_asked_seldom(job, monkeypatch):
    hooks, step = job(2)
    monkeypatch.setattr(Pace, "SECONDS", 3600.0)
    for number in range(1, 9):
        step(number, [0.01, 0.5], 0.6)
    assert hooks[0].line() == {}

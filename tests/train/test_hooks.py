"""Lines of progress and of evaluations, as a user sees them."""

import json
import logging

import numpy as np
import pytest

from train import hooks
from train.hooks import Evaluation, ProgressBar
from train.metrics_writer import MetricsWriter

METRICS = {"loss": np.float32(7.59), "learning_rate": np.float32(3e-4), "grad_norm": np.float32(1.25)}


@pytest.fixture
def clock(monkeypatch):
    """`clock[0] = t` sets the time of hooks."""
    now = [0.0]
    monkeypatch.setattr(hooks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_has_loss_rate_gradient_speed_and_time_left(clock, capsys):
    bar = ProgressBar(every=2, start=0, stop=100, tokens_per_step=2048)
    for step in (1, 2, 3, 4):
        clock[0] = 3.0 * step  # an evaluation took the other second
        bar.on_metrics(step, METRICS, 2.0)
    assert capsys.readouterr().err.splitlines() == [
        "step 2/100  loss 7.5900  rate 3.00e-04  gradient 1.25  1,024 tokens/s  2.000 s/step  4 min 54 s left",
        "step 4/100  loss 7.5900  rate 3.00e-04  gradient 1.25  1,024 tokens/s  2.000 s/step  4 min 48 s left",
    ]


def test_the_last_line_has_no_time_left(clock, capsys):
    bar = ProgressBar(every=10, start=0, stop=2)
    bar.on_metrics(1, {"loss": 1.0}, 0.5)
    bar.on_metrics(2, {"loss": 1.0}, 0.5)
    assert capsys.readouterr().err == "step 2/2  loss 1.0000  0.500 s/step\n"


@pytest.mark.parametrize(("steps", "mean"), [(1, 8.0), (2, 1.0), (3, 1.5), (5, 1.5)])
def test_bar_and_record_have_the_same_time_without_the_first_updates(tmp_path, capsys, steps, mean):
    shown = [ProgressBar(every=9, start=0, stop=steps), hooks.TrainingLines(
        MetricsWriter(tmp_path), every=9, last_step=steps, tokens_per_step=1
    )]  # fmt: skip
    for step, seconds in enumerate([8.0, 1.0, 2.0, 1.0, 2.0][:steps], 1):
        for hook in shown:
            hook.on_metrics(step, METRICS, seconds)
    assert f"  {mean:.3f} s/step" in capsys.readouterr().err
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step_seconds"] == mean


@pytest.mark.parametrize(("every", "last", "rarely"), [(1, 6, 1), (1, 1000, 5), (10, 1000, 10), (10, 10_000, 50)])
def test_large_metrics_are_in_few_lines_and_in_the_last(tmp_path, every, last, rarely):
    lines = hooks.TrainingLines(MetricsWriter(tmp_path), every=every, last_step=last, tokens_per_step=1)
    steps = [*range(1, min(last, 121)), last]
    for step in steps:
        lines.on_metrics(step, METRICS | {"router_load": np.full((2, 4), 100)}, 1.0)
    found = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [step for step in steps if step % every == 0 or step == last]
    having = [line["step"] for line in found if "router_load" in line]
    assert having == [step for step in steps if step % rarely == 0 or step == last]
    assert last / rarely <= hooks.TrainingLines.MOST and found[-1]["router_load"] == [[100] * 4] * 2


def test_other_processes_show_nothing(monkeypatch, capsys):
    monkeypatch.setattr(hooks.jax, "process_index", lambda: 1)
    ProgressBar(every=1, start=0, stop=2).on_metrics(1, METRICS, 0.5)
    assert capsys.readouterr() == ("", "")


def evaluated(tmp_path, clock, seconds: float, steps: int = 20) -> None:
    """Evaluates after every fifth step of one second; an evaluation takes `seconds`, the first one, which compiles,
    much longer."""

    def evaluate(state):
        clock[0] += 1000.0 if state == 5 else seconds
        return {"eval_loss": 7.5, "eval_tokens": 25600}

    hook = Evaluation(evaluate, MetricsWriter(tmp_path), every=5, last_step=steps)
    for step in range(1, steps + 1):
        hook.on_metrics(step, {}, 1.0)
        if hook.due(step):
            hook.on_state(step, step)


def test_an_evaluation_is_told_in_a_sentence(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO)
    evaluated(tmp_path, clock, 1.0)
    assert caplog.messages[1] == "step 10: held-out loss 7.5000 over 25,600 labels (1.0 s)"


def test_evaluations_that_take_much_of_the_time_are_told_once(tmp_path, clock, caplog):
    evaluated(tmp_path, clock, 5.0)
    assert caplog.messages == [
        "evaluations take 50% of the time: run.eval_every is the steps between them, run.eval_batches their length"
    ]


def test_evaluations_that_take_little_are_not(tmp_path, clock, caplog):
    evaluated(tmp_path, clock, 1.0)
    assert caplog.messages == []

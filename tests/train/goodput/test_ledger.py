"""Each second of a run is in one class; injected faults are where they were injected."""

import json

import pytest

from train.goodput.ledger import CLASSES, goodput_of, read_goodput

DAY = 1.7e9


class Process:
    """Lines of a process of which each phase takes so many seconds."""

    def __init__(self, name: str, at: float):
        self.name, self.now = name, DAY + at
        self.lines = [{"start": name, "time": self.now, "host": "h", "job": None}]

    def phase(self, kind: str, seconds: float, **more) -> "Process":
        self.lines.append({"process": self.name, "class": kind, "from": self.now, "to": self.now + seconds, **more})
        self.now += seconds
        return self

    def updates(self, first: int, last: int, seconds: float, data_wait: float = 0.0, **more) -> "Process":
        return self.phase("step", seconds, steps=[first, last], data_wait=data_wait, **more)

    def end(self, reason: str) -> list[dict]:
        return [*self.lines, {"end": self.name, "time": self.now, "reason": reason}]


def classes(lines) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in goodput_of(lines).seconds.items() if seconds}


def begun(name: str, at: float) -> Process:
    return Process(name, at).phase("init", 5).phase("restore", 2).phase("compile", 10)


def test_a_timeline_with_every_fault_sums_to_its_wall_time_and_names_each():
    """Killed after 15 updates of which 10 are saved; 40 s without a process; a loader that hangs for 30 s; preempted;
    100 s in a queue; to the end."""
    first = begun("a", 0).updates(1, 10, 20).phase("save", 3).updates(11, 15, 10)
    second = begun("b", 50 + 40).updates(11, 20, 50, data_wait=30).phase("save", 3)
    third = begun("c", 90 + 70 + 100).updates(21, 30, 20).phase("evaluation", 4).phase("save", 3)
    found = goodput_of([*first.lines, *second.end("Preempted"), *third.end("done")])
    assert found.wall == pytest.approx(sum(found.seconds.values()), abs=1e-6)
    assert found.wall == pytest.approx(third.now - DAY, abs=1e-3)
    assert {name: round(seconds, 3) for name, seconds in found.seconds.items()} == {
        "init": 15, "compile": 30, "data_wait": 30, "step": 20 + 20 + 20, "save": 9, "restore": 6, "evaluation": 4,
        "lost_work": 10, "idle": 40 + 100,
    }  # fmt: skip
    assert [(a.idle_before, a.first_step, a.last_step, a.reason) for a in found.attempts] == [
        (0, 1, 15, None),
        (40, 11, 20, "Preempted"),
        (100, 21, 30, "done"),
    ]
    assert found.fraction == pytest.approx(60 / found.wall)
    assert all(one.end == other.begin for one, other in zip(found.spans, found.spans[1:], strict=False))


def test_of_an_interval_only_the_updates_after_the_checkpoint_are_lost():
    first, second = begun("a", 0).updates(1, 10, 20, data_wait=4), begun("b", 37).updates(8, 10, 6)
    assert classes([*first.lines, *second.lines])["lost_work"] == 16 * 3 / 10


def test_an_update_that_never_ended_is_lost_when_it_is_tried_again():
    first = begun("a", 0).updates(1, 4, 8).phase("save", 1).updates(5, 4, 60)
    assert "lost_work" not in classes(first.lines)
    assert classes([*first.lines, *begun("b", 86).updates(5, 6, 4).lines])["lost_work"] == 60


def test_a_roll_back_within_a_process_loses_what_it_does_again():
    process = begun("a", 0).updates(1, 10, 10).phase("save", 1).updates(11, 20, 10).phase("restore", 2)
    assert classes(process.updates(11, 30, 20).lines)["lost_work"] == 10


def test_empty_intervals_of_one_process_are_not_lost():
    process = begun("a", 0).updates(1, 10, 10).phase("evaluation", 1).updates(11, 10, 0.1).phase("save", 1)
    assert "lost_work" not in classes(process.updates(11, 12, 2).lines)


def test_the_open_interval_counts_up_to_the_last_sign_of_life(tmp_path):
    process = begun("a", 0).updates(1, 10, 20)
    (tmp_path / "goodput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in process.lines))
    alive = {"process": "a", "class": "save", "from": process.now, "to": process.now + 7}
    (tmp_path / "goodput.alive").write_text(json.dumps(alive))
    assert read_goodput(tmp_path).seconds["save"] == 7
    (tmp_path / "goodput.alive").write_text(json.dumps(alive | {"from": DAY, "to": process.now - 1}))  # an old one
    assert read_goodput(tmp_path).wall == pytest.approx(37, abs=1e-3)


def test_a_clock_that_was_set_back_makes_no_time_negative():
    found = goodput_of([*begun("a", 0).updates(1, 9, 9).lines, *begun("b", -3600).updates(10, 19, 9).lines])
    assert found.wall == pytest.approx(2 * 26, abs=1e-3) and found.seconds["idle"] == 0
    assert all(span.seconds > 0 for span in found.spans)


@pytest.mark.parametrize(
    "broken",
    [
        {"process": "a", "class": "step", "from": "x", "to": 1},
        {"process": "a", "class": "nonsense", "from": DAY, "to": DAY + 99},
        {"process": "b", "class": "save", "from": DAY, "to": DAY + 99},
        {"process": "a", "class": "save", "from": DAY, "to": 1e300},
        {"process": "a", "class": "save", "from": DAY + 9, "to": DAY},
        {"start": 3, "time": []},
        {"end": ["a"]},
        {},
    ],
)
def test_malformed_lines_are_left_out(broken, tmp_path):
    process = begun("a", 0)
    lines = [*process.lines, broken, *process.updates(1, 2, 3).lines[-1:]]
    text = "\n".join(["not json", "[" * 10_000, "7", *map(json.dumps, lines), '{"half'])
    (tmp_path / "goodput.jsonl").write_text(text)
    found = read_goodput(tmp_path)
    assert found.wall == pytest.approx(20, abs=1e-3) and found.seconds["step"] == pytest.approx(3, abs=1e-3)


def test_seconds_that_no_line_tells_of_are_idle():
    process = begun("a", 0)
    process.now += 5
    assert classes(process.updates(1, 2, 3).lines)["idle"] == 5


def test_without_a_record_there_is_nothing(tmp_path):
    found = read_goodput(tmp_path)
    assert (found.wall, found.fraction, found.attempts) == (0, None, ())
    assert found.seconds == dict.fromkeys(CLASSES, 0)

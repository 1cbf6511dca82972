"""Events of a run in words; the file is untrusted."""

import json

from launch.cli import main
from launch.runs import happened as module
from launch.runs.happened import happened
from launch.runs.status import status
from maverick_jax.events import FILE
from tests.train.goodput.test_ledger import begun

EVENTS = [
    {"time": 1, "event": "update_refused", "step": 12, "reason": "spike", "rows": [96, 103]},
    {"time": 2, "event": "rolled_back", "step": 1400, "to": 1000, "batches": [1000, 1399]},
    {"time": 3, "event": "replicas_differ", "step": 20, "devices": [3], "hosts": ["node7"], "fault": "transient"},
    {"time": 4, "event": "hung", "process": 1, "problem": "watchdog: no progress"},
    {"time": 5, "event": "checkpoint_damaged", "step": 30, "problems": ["w: differs"]},
    {"time": 6, "event": "checkpoint_set_aside", "step": 30, "name": "30.corrupt-1", "problem": "w: differs"},
    {"time": 7, "event": "checkpoint_copied", "step": 40},
    {"time": 8, "event": "copy_failed", "step": 50, "problem": "away"},
    {"time": 9, "event": "copy_passed_over", "step": 60, "busy": 55},
    {"time": 10, "event": "copy_given_up", "step": 70},
    {"time": 11, "event": "checkpoint_read_back", "step": 70},
]
SAID = [
    "update 12 refused: spike",
    "rolled back from step 1,400 to 1,000",
    "step 20: replicas differ, transient fault, device 3 on node7",
    "process 1 hung: watchdog: no progress",
    "checkpoint of step 30 was written damaged: w: differs",
    "checkpoint of step 30 set aside as 30.corrupt-1: w: differs",
    "checkpoint of step 40 copied",
    "checkpoint of step 50 could not be copied: away",
    "checkpoint of step 60 not copied: that of 55 still was",
    "the copy of checkpoint 70 was given up at the stop",
]


def write(folder, events) -> None:
    (folder / FILE).write_text("".join(json.dumps(event) + "\n" for event in events))


def test_each_event_has_words(tmp_path):
    write(tmp_path, EVENTS)
    assert happened(tmp_path) == list(zip(range(1, 11), SAID, strict=True))


def test_every_event_of_the_guards_is_shown_by_watch(run, capsys):
    directory = run("a", begun("a", 0).updates(1, 4, 8).end("done"))
    write(directory, [{**event, "time": 10**10 + event["time"]} for event in EVENTS[:4]])
    assert main(["watch", str(directory)]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in SAID[:4])
    assert status(directory).events[-1].text == SAID[3]


def test_malformed_and_hostile_events(tmp_path):
    assert happened(tmp_path) == []
    hostile = [
        *("[", "1", "[" * 10**5, "{}", '{"event": []}', '{"event": "hung"}', '{"event": "hung", "time": "x"}'),
        '{"event": "hung", "time": "Infinity"}', '{"event": "unknown", "time": 1}',
        json.dumps({"event": "hung", "time": 1, "process": "\x1b[2J", "problem": "a\nb" * 100}),
        json.dumps({"event": "update_refused", "time": 2, "step": {"a": 1}}),
    ]  # fmt: skip
    (tmp_path / FILE).write_bytes("\n".join(hostile).encode() + b"\n\xff\xfe\n")
    (_, hung), (_, refused) = happened(tmp_path)
    assert "\x1b" not in hung and "\n" not in hung and len(hung) < 300
    assert refused == "update {'a': 1} refused: ?"


def test_only_the_newest_part_of_a_long_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 200)
    write(tmp_path, [{"time": i, "event": "checkpoint_copied", "step": i} for i in range(100)])
    found = happened(tmp_path)
    assert 0 < len(found) < 10 and found[-1] == (99, "checkpoint of step 99 copied")

"""The record of events: whole lines, of the innermost run, without secrets, and never the end of a run."""

import json

from maverick_jax import events


def lines(folder):
    return [json.loads(line) for line in (folder / events.FILE).read_text().splitlines()]


def test_events_belong_to_the_innermost_run_that_is_known(tmp_path):
    events.record("outside")
    with events.recorded():
        events.record("too early")
        events.record_to(tmp_path / "outer")
        events.record("one", step=1)
        with events.recorded():
            events.record("inner, too early")
            events.record_to(tmp_path / "inner")
            events.record("two")
        events.record("three")
    events.record("outside")
    assert [line["event"] for line in lines(tmp_path / "outer")] == ["one", "three"]
    assert [line["event"] for line in lines(tmp_path / "inner")] == ["two"]
    assert lines(tmp_path / "outer")[0]["step"] == 1 and lines(tmp_path / "outer")[0]["time"] > 1e9


def test_secrets_are_left_out(tmp_path):
    with events.recorded():
        events.record_to(tmp_path)
        events.record("copy_failed", problem="https://user:canary@host/x?token=canary")
    assert "canary" not in (tmp_path / events.FILE).read_text()


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with events.recorded():
        events.record_to(tmp_path / "file")
        events.record("lost")
    assert (tmp_path / "file").read_text() == ""

"""Progress of work whose length is unknown, and times as text."""

import time

import pytest

from maverick_jax import progress
from maverick_jax.progress import Working, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min 01 s"), (7500, "2 h 05 min"), (300_000, "3 d 11 h")],
)
def test_a_time_has_two_units(seconds, text):
    assert duration(seconds) == text


def test_work_is_shown_at_once_and_while_it_lasts(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    with Working("compiling", done="compiled"):
        said = capsys.readouterr().err
        assert said.startswith("compiling\n")
        while "compiling: 0 s\n" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert capsys.readouterr().err.splitlines()[-1] == "compiled in 0 s"


def test_work_that_fails_is_not_done(capsys):
    with pytest.raises(KeyError), Working("compiling", done="compiled"):
        raise KeyError
    assert capsys.readouterr().err == "compiling\n"


def test_work_that_is_not_shown_says_nothing(capsys):
    with Working("compiling", shown=False):
        pass
    assert capsys.readouterr().err == ""


def test_lines_of_a_job_have_the_number_of_their_process(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_number", "")
    progress.number_lines(3)
    progress.say("compiled")
    assert capsys.readouterr().err == "[3] compiled\n"

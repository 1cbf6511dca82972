"""What the command shows besides results has no secrets."""

import logging
import sys

from launch.terminal import Lines, show_bug

CANARY = "C4nary-term-9d8e7f"


def test_a_log_line_has_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("A_TOKEN", CANARY)
    handler = Lines()
    record = logging.LogRecord("x", logging.INFO, "f", 1, "reading %s with api_key=%s", (CANARY, "abc-12345"), None)
    handler.handle(record)
    assert capsys.readouterr().err == "reading [redacted] with api_key=[redacted]\n"


def test_a_traceback_has_no_secret(capsys):
    try:
        raise ValueError(f"cannot open https://me:{CANARY}@host/x")
    except ValueError as error:
        show_bug(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.rstrip().endswith("cannot open https://[redacted]@host/x")


def test_the_line_of_code_in_a_traceback_has_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("A_TOKEN", CANARY)
    try:
        compile(f"x = '{CANARY}' +", "config", "exec")
    except SyntaxError:
        show_bug(*sys.exc_info())
    assert CANARY not in capsys.readouterr().err

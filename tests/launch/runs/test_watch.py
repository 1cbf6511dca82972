"""The live view of a run: its text, and that it ends cleanly."""

import json
import os
import pty
import select
import signal
import subprocess
import sys

import numpy as np
import pytest

from launch.cli import main
from launch.runs.status import status
from launch.runs.watch import frame, sparkline
from tests.helpers.small_run import PATIENCE
from tests.train.goodput.test_ledger import begun


def lines(reason="Preempted"):
    return begun("a", 0).updates(1, 4, 8).phase("save", 8).end(reason)


def test_a_sparkline_goes_from_the_lowest_to_the_highest_mean():
    assert sparkline(np.arange(8.0), 100) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0.0, 2, 8, 8]), 2) == "▁█" and sparkline(np.ones(3), 3) == "▁▁▁"


def test_without_a_terminal_one_frame_of_plain_text_is_printed(run, capsys):
    directory = run("a", lines(), saved=(4,))
    assert main(["watch", str(directory)]) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text and "a  preempted: asked to stop, after a save" in text
    assert "4 / 20" in text and "█▆▃▁" in text and "4.9000 to 4.6000" in text
    assert "ended after step 4: stopped as asked" in text and "checkpoint of step 4" in text
    assert "updates 24%" in text and "saving 24%" in text
    assert main(["watch", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "preempted"


def test_a_run_that_has_just_started_has_a_frame(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {steps: 5}\n")
    assert "events" in frame(status(tmp_path), terminal=False, width=40)


def test_control_characters_of_a_run_are_not_obeyed(run):
    text = frame(status(run("a\x1b]0;x\x07[bold]b", lines("\x1b[2J[blink]"))), terminal=True, width=100)
    assert "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text and "[blink]" in text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["q", "signal"])
def test_the_live_view_ends_and_leaves_the_terminal_as_it_was(run, how):
    """In a pseudo-terminal: the alternate screen is entered and left, and the last frame stays."""
    directory = run("a", lines())
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "watch", str(directory)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    seen, sent = b"", False
    while select.select([ours], [], [], PATIENCE)[0]:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # closed
            break
        if b"preempted" in seen and not sent:
            sent = True
            os.write(ours, b"q") if how == "q" else process.send_signal(signal.SIGINT)
    os.close(ours)
    assert process.wait(PATIENCE) == 0
    assert seen.index(b"\x1b[?1049h") < seen.index(b"\x1b[?1049l") < seen.rindex(b"preempted")
    assert b"Traceback" not in seen

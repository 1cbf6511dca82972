"""`maverick runs`: the table and its JSON."""

import json

import pytest

from launch.cli import main
from launch.runs.table import runs, show
from tests.train.goodput.test_ledger import begun


def test_each_run_is_a_row_and_an_object(run, tmp_path, capsys):
    run("second", begun("a", 0).updates(1, 4, 8).end("Watchdog"))
    run("first", begun("a", 0).updates(1, 4, 8).phase("save", 8).end("Preempted"))
    assert main(["runs", str(tmp_path / "all")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "/ 20" in line]
    assert [row[:2] for row in rows] == [["first", "preempted"], ["second", "failed:"]]
    assert rows[0][2:9] == ["4", "/", "20", "4.6000", "3.2500", "3,000", "24.2%"]
    assert main(["runs", str(tmp_path / "all"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [entry["state"] for entry in found] == ["preempted", "failed"]
    assert found[1]["reason"] == "hung" and found[0]["last_event"]["text"] == "ended after step 4: stopped as asked"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_and_markup_of_a_run_are_not_obeyed(run, tmp_path, terminal):
    run("a\x1b]0;x\x07[bold red]b", begun("a", 0).updates(1, 4, 8).end("\x1b[2J[blink]"))
    text = show(runs(tmp_path / "all"), terminal=terminal, width=200)
    assert "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text
    assert "[bold red]b" in text and "[blink]" in text
    assert ("\x1b[" in text) == terminal


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    assert main(["runs", str(tmp_path)]) == 78
    assert "none of its folders has config.yaml" in capsys.readouterr().err

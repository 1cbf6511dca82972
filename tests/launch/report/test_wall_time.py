"""The report's section on wall time."""

import json

import numpy as np
import pytest

from launch.report.page import report
from launch.report.wall_time import binned, class_rows, energy, start_rows, summary, timeline_svg
from tests.train.goodput.test_ledger import begun
from train.goodput.ledger import CLASSES, TimeSpan, goodput_of


@pytest.fixture
def lines():
    """Killed after 15 updates, of which 10 are saved; again 40 s later, to the end."""
    first = begun("a", 0).updates(1, 10, 20, kwh=1.0).phase("save", 3).updates(11, 15, 10, kwh=2.0)
    return [*first.lines, *begun("b", 90).updates(11, 20, 20, kwh=0.5).phase("evaluation", 3).end("done")]


def test_the_summary_and_the_rows(lines):
    found = goodput_of(lines)
    assert summary(found) == (
        "Goodput 30.8%: of 2 min 10 s since the first of 2 starts, 40.0 s went into updates that count."
    )
    rows = {row[0]: row[2:] for row in class_rows(found)}
    assert rows["lost work"] == ("7.7%", "10.0 s") and rows["idle"] == ("30.8%", "40.0 s")
    assert "waiting for data" not in rows
    starts = start_rows(found)
    assert [row[1:] for row in starts[1:]] == [
        ("0.0 s", "50.0 s", "1 to 15", "killed, or still running"),
        ("40.0 s", "40.0 s", "11 to 20", "complete"),
    ]
    assert starts[1][0] == "2023-11-14 22:13 UTC"


def test_a_run_of_one_start_has_no_table_of_starts(lines):
    assert start_rows(goodput_of(lines[:5])) == []


def test_energy_of_all_starts_with_the_factors_of_the_config(lines):
    found = goodput_of(lines)
    assert energy(found, {}) == "The devices used 2.5 kWh."
    section = {"logging.energy": {"pue": 1.2, "grid_kg_per_kwh": 0.5, "market_kg_per_kwh": 0.0}}
    assert energy(found, section) == (
        "The devices used 3 kWh (PUE 1.2 included), 1.5 kg CO2e location-based, 0 kg CO2e market-based."
    )
    assert energy(found, {"logging.energy": {"pue": "x"}}) == "The devices used 2.5 kWh."
    assert energy(goodput_of(lines[:2]), {}) == ""


def test_bins_have_the_parts_of_each_class():
    spans = [TimeSpan(0, 1.5, "init"), TimeSpan(1.5, 2, "step"), TimeSpan(2, 10, "idle")]
    parts = binned(spans, np.array([0.0, 1, 2, 4, 10]))
    assert parts["init"].tolist() == [1, 0.5, 0, 0] and parts["step"].tolist() == [0, 0.5, 0, 0]
    assert sum(parts[name] for name in CLASSES).tolist() == [1, 1, 1, 1]


def test_the_page_has_the_bar_the_plot_and_the_starts(lines, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "goodput.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(tmp_path).read_text()
    assert "Goodput 30.8%" in text and "killed, or still running" in text
    assert '<span style="width:7.692%;background:var(--lost_work)">' in text
    drawn = text[text.index("Over time") :]
    assert all(f"var(--{name})" in drawn for name in ("init", "compile", "step", "save", "restore", "idle"))


def test_a_run_without_a_record_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Not recorded: the run has no goodput.jsonl." in report(tmp_path).read_text()
    assert timeline_svg(goodput_of([])) == ""

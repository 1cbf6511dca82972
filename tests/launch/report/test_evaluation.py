"""The page of an evaluation."""

import re

from launch.report.evaluation import page, write_page
from train.evaluation.results import compare

FIGURE = {"value": 0.25, "n": 4, "low": 0.05, "high": 0.7}
EVIL = "<script>alert(1)</script>"


def task(scores=(1, 0, 0, 0)) -> dict:
    examples = [{"id": f"{i}{EVIL}", "score": s, "text": EVIL * 200, "reason": EVIL} for i, s in enumerate(scores)]
    shares = dict.fromkeys(("unanswered", "malformed", "cut"), FIGURE) | {"loop": None}
    return {
        "n": 4, "score": FIGURE, "parts": {"strict": FIGURE},
        "figures": {f"bias {EVIL}": FIGURE | {"clusters": 2, "low": -1}},
        "source": EVIL, "license": "MIT", "examples": examples, "digest": "d", **shares,
    }  # fmt: skip


def test_all_text_is_escaped_and_every_task_is_shown(tmp_path):
    html = page({"checkpoint": EVIL, "tasks": {f"a{EVIL}": task(), "b$x$": task()}})
    assert "<script" not in html and "&lt;script&gt;" in html and html.count("<svg") == 2 * 3
    assert "0.050 to 0.700" in html and "25.0%" in html and "4 (2 sources)" not in html.split("<h2>")[1]
    assert not re.search(r"(?:src|href)=\"(?!#)", html), "nothing is loaded"
    assert write_page(tmp_path / "out", {"tasks": {"a": task()}}).read_text().startswith("<!doctype html>")


def test_a_comparison_says_where_no_difference_can_be_told():
    sides = [{"tasks": {"a": task(), "b": task(scores)}} for scores in ((0,) * 12, (1,) * 12)]
    html = page({"comparison": compare(*sides, ("first", EVIL))})
    assert "No difference can be told at 5% on: a." in html and "(mcnemar)" in html and "<script" not in html


def test_harness_metrics_are_listed():
    found = {"version": "0.4.13", "begin_token": "one", "figures": {"arc": {"acc,none": FIGURE}}}
    html = page({"checkpoint": "m", "harness": found})
    assert "acc,none" in html and "0.4.13" in html

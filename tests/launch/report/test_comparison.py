"""The report of several runs: what it says of each, what differs, and that nothing in a run's files becomes markup."""

import json

import pytest

from launch.cli import main
from launch.report.comparison import COLORS, MAX_RUNS, compare, config_rows, environment_rows, figure_rows, names_of
from launch.report.plots import VARIABLES
from launch.report.run_record import read_run
from tests.launch.report.test_page import HOSTILE, Page, line
from tests.train.goodput.test_ledger import begun

TWO = (line(1), line(2))
CONFIG = (
    "run: {{name: {name}, steps: 9, seed: 0}}\noptimizer: {{learning_rate: {rate}, multipliers: {{router: {rate}}}}}\n"
)


@pytest.fixture
def make(tmp_path):
    """`make(name, rate, lines, **environment)`: a run directory."""

    def run(name: str, rate: float = 1e-3, lines=TWO, **environment):
        directory = tmp_path / "runs" / name
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(CONFIG.format(name=json.dumps(name), rate=rate))
        (directory / "environment.json").write_text(json.dumps({"python": "3.11", **environment}))
        timeline = begun("a", 0).updates(1, 2, 17).end("done")
        for file, written in (("metrics.jsonl", lines), ("goodput.jsonl", timeline)):
            (directory / file).write_text("".join(json.dumps(entry) + "\n" for entry in written))
        return directory

    return run


def test_the_page_has_the_curves_of_all_runs_in_one_figure_each(make, capsys):
    lines = [line(s, router_load_max=[1.0, float(s)]) for s in (1, 2, 3)]
    runs = [make("a", lines=lines), make("b", 2e-3, [*lines, {"step": 3, "eval_loss": 2.5}])]
    assert main(["report", *map(str, runs)]) == 0
    path = runs[0].parent / "comparison.html"
    assert capsys.readouterr().out.strip() == str(path)
    text, page = path.read_text(), Page(path.read_text())
    assert not {"script", "img", "link", "iframe", "base"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids)) and all(address[1:] in page.ids for address in page.addresses)
    loss = text[text.index("<figcaption>Loss<") :].split("</figure>")[0]
    assert "var(--run0)" in loss and "var(--run1)" in loss and "stroke-dasharray" in loss
    assert "Load of the busiest expert<small>Mean of the layers.</small>" in text.replace("<small> ", "<small>")
    assert text.count('<div class="bar">') == 2 and text.count("Goodput 50.0%") == 2


def test_figures_are_those_of_each_run(make):
    runs = [make("a"), make("b", lines=[])]
    rows = figure_rows([read_run(run) for run in runs], ["a", "b"])
    assert rows[1:] == [
        ("a", "2 of 9", "4.8000", "-", "-", "32", "50.0%", "1"),
        ("b", "0 of 9", "-", "-", "-", "-", "50.0%", "1"),
    ]


def test_only_what_differs_is_listed(make):
    records = [read_run(make("a")), read_run(make("b", 2e-3, python="3.12", device_count=1, devices=["cpu"]))]
    assert config_rows(records, "ab") == [
        ("", "a", "b"),
        ("optimizer.learning_rate", "0.001", "0.002"),
        ("optimizer.multipliers.router", "0.001", "0.002"),
    ]
    assert environment_rows(records, "ab") == [
        ("", "a", "b"),
        ("Devices", "-", "1 x cpu, in one process"),
        ("Python", "3.11", "3.12"),
    ]
    assert config_rows(records[:1] * 2, "ab") == []


def test_what_a_restart_changed_is_on_the_page(make):
    changed = {"optimizer.learning_rate": [0.001, 0.003]}
    starts = [{"step": 0}, {"step": 4, "time": "2026-01-02T03:04:05+00:00", "changed": changed}]
    text = compare([make("a", starts=starts), make("b", starts=[{}, 3, {"changed": 3}])]).read_text()
    row = "<td>2026-01-02 03:04 UTC</td><td>4</td><td>optimizer.learning_rate</td><td>0.001</td><td>0.003</td>"
    assert row in text and text.count("Changed in the config") == 1


def test_text_of_a_run_never_becomes_markup(make):
    odd = {"loss": HOSTILE, HOSTILE: [HOSTILE], "router_load_max": [HOSTILE], "mfu": {"a": 1}}
    one = make("<script>alert(1)", lines=[line(1), line(2, **odd)], starts=[{}, {"changed": {HOSTILE: HOSTILE}}])
    text = compare([one, make("b", **{HOSTILE: HOSTILE})]).read_text()
    assert "script" not in Page(text).tags and "&lt;script&gt;" in text


def test_runs_of_one_name_are_told_apart_by_their_paths(make):
    records = [read_run(make("x/a")), read_run(make("y/a"))]
    assert [name.split("/")[-2:] for name in names_of(records)] == [["x", "a"], ["y", "a"]]


def test_bad_arguments_are_one_error(make, tmp_path, capsys):
    run = str(make("a"))
    other = str(make("b"))
    for wrong, said in (
        ([run, run], "named twice"),
        ([run, str(tmp_path / "none")], "does not exist"),
        ([f"{tmp_path}/{i}" for i in range(MAX_RUNS + 1)], f"at most {MAX_RUNS}"),
        ([run, other, "--prompt", "x"], "expected one RUN_DIR"),
    ):
        assert main(["report", *wrong]) == 78
        assert said in capsys.readouterr().err
    assert not (tmp_path / "runs" / "comparison.html").exists()


def test_the_page_has_a_color_for_each_run_and_no_other_color_is_the_same():
    assert len(set(COLORS)) == MAX_RUNS and not set(COLORS) & set(VARIABLES)

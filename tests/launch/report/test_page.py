"""The report of a run: its contents, and that nothing in a run's files becomes markup."""

import dataclasses
import html.parser
import json
import math
import pathlib

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from launch.cli import main
from launch.report import run_record
from launch.report.metrics import PLOTS
from launch.report.page import report
from launch.report.plots import MAX_POINTS, VARIABLES, constants, draw_all, figure_of, tokens_by_step
from launch.report.run_record import (
    MAX_TEXT,
    RunRecord,
    TextFile,
    layer_series,
    number,
    read_metrics,
    read_run,
    series,
)
from launch.report.stages import borders
from launch.report.summary import facts, headline, models, notes, stage_rows, verdict
from maverick_jax.errors import InputError
from maverick_jax.files import write_atomically

HOSTILE = "</pre><script>alert(1)</script>"


def line(step: int, **more) -> dict:
    numbers = {"loss": 5.0 - step / 10, "tokens": step * 64, "tokens_per_second": 32.0, "step_seconds": 2.0}
    return {"step": step, **numbers, "learning_rate": 1e-3, "grad_norm": 1.0, "mfu": None, **more}


@pytest.fixture
def run(tmp_path):
    """`run(*lines, sample=...)`: a run directory with these metrics and other files."""

    def make(*lines: dict, **files: str):
        directory = tmp_path / "a & b"
        directory.mkdir()
        (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        names = {"config": "config.yaml", "environment": "environment.json", "sample": "sample.txt"}
        for name, content in files.items():
            (directory / names[name]).write_text(content)
        return directory

    return make


class Page(html.parser.HTMLParser):
    """Tags, ids, and the addresses that the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_report_is_one_file_without_scripts_and_links(run):
    lines = [line(s, router_load_max=[1.0, 2.0 + s], loss="NaN" if s == 3 else 4.0) for s in range(1, 6)]
    config = f"run: {{name: '{HOSTILE}', steps: 9}}\n"
    path = report(
        run(*lines, {"step": 5, "eval_loss": 3.5, "eval_seconds": 1.0}, config=config, sample=f"ROMEO: {HOSTILE}")
    )
    assert path.name == "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 3  # loss, broad and narrow, and expert load; the others are constant
    assert "Constant during the run" in text and "tokens per second" in text
    assert not {"script", "img", "link", "iframe", "base"} & set(page.tags)
    assert page.addresses and all(address[1:] in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert "url(http" not in text and "@import" not in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 2  # config and sample
    assert "<details>" in text[: text.index("run: {name:")].rsplit("<h2>", 1)[1]  # the config is folded
    assert "a &amp; b" in text
    assert "Step 5 of 9, loss 4.0000, held-out loss 3.5000, 32 tokens/s" in text
    assert "environment.json is missing" in text


@pytest.mark.parametrize("where", ["key", "value", "environment", "directory"])
def test_text_of_a_run_never_becomes_markup(run, tmp_path, where):
    more = {HOSTILE: 1.0} if where == "key" else {"tokens": HOSTILE, "kl": HOSTILE} if where == "value" else {}
    files = {"environment": json.dumps({HOSTILE: {HOSTILE: [HOSTILE]}})} if where == "environment" else {}
    directory = run(line(1, **more), line(2, **more), **files)
    if where == "directory":
        directory = directory.rename(tmp_path / "<script>alert(1)")
    assert "script" not in Page(report(directory).read_text()).tags


def test_a_run_that_has_just_started_has_a_report(run):
    text = report(run(config="run:\n  steps: 1_000\n")).read_text()
    assert "No metrics yet" in text and "Nothing to draw yet" in text and "the run has no goodput.jsonl" in text
    assert "svg" not in Page(text).tags


def test_a_metric_of_the_objective_gets_its_own_plot(run):
    drawn = draw_all(read_run(run(line(1, kl=2.0, note="x"), line(2, kl=1.0, note="y"))))
    assert [plot.title for plot in drawn][-1] == "kl"


def test_the_loss_of_own_samples_is_not_in_the_training_loss(run):
    """It is not in the curve, nor in the figures; a run of nothing else has its held-out loss only."""
    sampled = [line(s, loss=9.0, on_policy=1) for s in (1, 4)]
    mixed = read_run(run(*sampled, line(2, on_policy=0), line(3, on_policy=0)))
    assert draw_all(mixed)[0].notes == ("without 2 lines of the model's own samples",)
    assert facts(mixed, {})["Training loss"] == ("4.7000", "from 4.8000 at step 2") and "loss 4.7" in headline(
        mixed, {}
    )
    held_out = {"step": 4, "eval_loss": 2.5}
    alone = dataclasses.replace(mixed, training=sampled, evaluations=[held_out])
    assert draw_all(alone)[0].title == draw_all(mixed)[0].title and "Training loss" not in facts(alone, {})
    assert headline(alone, {}).startswith("Step 4, held-out loss 2.5")


def test_skipped_updates_are_shown_only_if_there_are_any(run, tmp_path):
    fine, bad = run(line(1, skipped=0)), tmp_path / "bad"
    bad.mkdir()
    (bad / "metrics.jsonl").write_text(json.dumps(line(1, skipped=0)) + "\n" + json.dumps(line(2, skipped=1)) + "\n")
    titles = [[plot.title for plot in draw_all(read_run(directory))] for directory in (fine, bad)]
    assert ["Updates skipped so far" in found for found in titles] == [False, True]
    assert [bool(notes(read_run(directory))) for directory in (fine, bad)] == [False, True]


def test_long_curves_are_plotted_as_means_with_a_note(run):
    record = read_run(run(*[line(s, loss=float(s % 7)) for s in range(1, 2 * MAX_POINTS + 2)]))
    loss = draw_all(record)[0]
    assert loss.notes == ("means of 3 lines; band: minimum to maximum",)
    assert len(loss.svg) < 60_000


def test_extreme_numbers_are_plotted(run):
    lines = [
        line(1, loss=1e308, grad_norm=-1e308, router_load_max=[1.0], tokens=10**400, mfu=0.4),
        line(2, loss=None, grad_norm="Infinity", router_load_max=[], tokens=None, mfu=[1]),
        line(3, loss=[1, 2], grad_norm={}, router_load_max=[None, "x", 2.0], tokens="\ud800", mfu=True),
        line(2**53 - 1, loss=3e38, router_load_max=1.0),
        {"step": 4, "eval_loss": None, "eval_seconds": -1},
    ]
    assert "<svg" in report(run(*lines, environment="[" * 100_000)).read_text()


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_headline_and_facts(run):
    evaluations = [{"step": 10, "eval_loss": 4.5}, {"step": 20, "eval_loss": 4.75}]
    record = read_run(run(line(5), line(10), evaluations[0], line(20, skipped=1), evaluations[1]))
    assert headline(record, {}) == "Step 20, loss 3.0000, held-out loss 4.7500, 32 tokens/s"
    found = facts(record, {"parameters": 1000, "active_parameters": 100})
    assert found["Training loss"] == ("3.0000", "from 4.5000 at step 5")
    assert found["Held-out loss"] == ("4.7500", "best 4.5000 at step 10")
    assert (found["Tokens"][0], found["Updates skipped"][0]) == ("1,280", "1")
    assert found["Parameters"] == ("1,000", "100 active")
    assert "MFU" not in found


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_an_incomplete_last_line_is_ignored(run):
    directory = run(line(2), line(1))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    lines, unreadable = read_metrics(directory / "metrics.jsonl")
    assert [entry["step"] for entry in lines] == [1, 2] and unreadable == 0
    assert notes(read_run(directory)) == []


@pytest.mark.parametrize(
    "text", ["[1]", '{"loss": 1}', "text", "[" * 100_000, '{"step": true}', '{"step": -1}', '{"step": 1e3}', "\0"]
)
def test_a_malformed_line_is_counted_and_reported(run, text):
    directory = run(line(1))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(f"{text}\n{json.dumps(line(2))}\n")
    lines, unreadable = read_metrics(directory / "metrics.jsonl")
    assert [entry["step"] for entry in lines] == [1, 2] and unreadable == 1
    assert "1 line(s) could not be read" in notes(read_run(directory))[0]


def test_a_directory_that_is_not_a_run_is_an_error(tmp_path):
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    (tmp_path / "runs" / "demo-1" / "config.yaml").touch()
    for wrong, near in (("runs/demo-2", "demo-1"), ("runs", "runs/demo-1")):
        with pytest.raises(InputError, match=rf"expected a run directory.*did you mean .*{near}"):
            report(tmp_path / wrong)
    assert not list(tmp_path.rglob("report.html*"))


def test_non_finite_values_are_gaps_in_a_series():
    lines = [{"step": 1, "x": 1.0}, {"step": 2, "x": "NaN"}, {"step": 3, "x": None}, {"step": 4, "x": 4}]
    steps, values = series(lines, "x")
    np.testing.assert_array_equal(steps, [1, 2, 4])
    np.testing.assert_array_equal(values, [1.0, math.nan, 4.0])
    steps, values = layer_series([{"step": 1, "x": [1, 2, 3]}, {"step": 2, "x": [4]}, {"step": 3, "x": 5}], "x", 2)
    np.testing.assert_array_equal(values, [[1, 2], [4, math.nan]])


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), ("Infinity", math.inf), ("x", math.nan), (True, math.nan), (10**400, math.nan)]
)
def test_number(value, expected):
    np.testing.assert_equal(number(value), expected)


def test_losses_by_kind_are_plotted_with_any_names(run):
    """Names that are no formula, no label or far too long; values that are no numbers; lines that have none."""
    odd = {r"$\bad{$": 1.0, "_x": "NaN", "y" * 500: 2.0, "": 3, HOSTILE: 2.5, "list": [1]}
    held_out = {"step": 2, "eval_loss": 2.0, "eval_kind_loss": {"recovery": 1.0}}
    found = run(line(1, kind_loss=odd), line(2, kind_loss={"recovery": 1.5}), line(3, kind_loss=3.0), held_out)
    drawn = {plot.title: plot for plot in draw_all(read_run(found))}
    assert "Loss by kind of token" in drawn and "Held-out loss by kind of token" in drawn
    assert all("<script" not in plot.svg for plot in drawn.values())
    assert "kind_loss" not in drawn and "kind_tokens" not in drawn
    empty = dataclasses.replace(read_run(found), training=[line(1, kind_loss={"a": None})], evaluations=[])
    assert "Loss by kind of token" not in {plot.title for plot in draw_all(empty)}


def test_a_long_text_is_cut_and_marked(run):
    record = read_run(run(line(1), config="# " + "x" * MAX_TEXT))
    assert record.config.cut and len(record.config.content) == MAX_TEXT
    assert "[...]" in report(record.directory).read_text()


def test_the_command_prints_the_path_of_the_report(run, capsys):
    directory = run(line(1))
    assert main(["report", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(directory / "report.html")}


# ---- words and pictures ----------------------------------------------------------------------------------------------


def distilled(step: int, *, weight: float, lead: float, **more) -> dict:
    losses = {"loss": 6.29 - step / 100, "teacher_loss": 6.92, "divergence": 1.0 + step / 10}
    weights = {"soft_weight": weight, "hard_weight": 1 - weight, "lead_ema": lead, "doubt": "Infinity"}
    return line(step, **losses, **weights, **more)


ENVIRONMENT = {
    "devices": ["cpu"], "device_count": 4, "process_count": 2, "mesh": {"data": 1, "fsdp": 4}, "python": "3.12.1",
    "packages": {"jax": "0.10.2"}, "parameters": 2_493_568, "active_parameters": 1_117_312, "data": "abc",
    "references": {"teacher": {"path": "runs/t", "parameters": 11_029_920, "active_parameters": 1_813_920}},
    "train_flops_per_token": 6.8e6,
    "starts": [
        {"step": 0, "time": "2026-01-02T03:04:05+00:00", "host": "node7", "command": "maverick train x",
         "version": "0.1.0", "commit": "0123456789abcdef+changes"},
        {"step": 20, "time": "2026-01-02T05:06:07+00:00", "host": "node8", "command": "maverick train x"},
    ],
}  # fmt: skip


def test_a_teacher_that_is_behind_is_named_at_the_top(run):
    lines = [
        distilled(1, weight=0.3, lead=0.2),
        distilled(2, weight=0.0, lead=-0.4),
        distilled(3, weight=0.0, lead=-0.4),
    ]
    found = notes(read_run(run(*lines)))
    assert found == [
        "The teacher is behind the student, by 0.40 nats per token on average: its targets weigh 0.00 since step 2 "
        "(teacher's loss 6.92, student's 6.26). The student learns from the text alone."
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([distilled(1, weight=0.0, lead="x")], ["The teacher's targets weigh 0.00 since step 1"]),
        ([line(1, soft_weight=0.0), line(2, soft_weight=0.0)], ["The teacher's targets weigh 0.00 since step 1."]),
        ([distilled(1, weight=0.0, lead=-1.0), distilled(2, weight=0.1, lead=0.1)], []),
        ([distilled(1, weight=0.0, lead=-1.0, on_policy=1)], []),
    ],
)
def test_targets_that_weigh_nothing_are_named_only_if_they_do_at_the_end(run, lines, said):
    found = notes(read_run(run(*lines)))
    assert len(found) == len(said) and all(text in note for text, note in zip(said, found, strict=True))


def test_the_verdict_compares_with_the_teacher_and_with_earlier_steps(run):
    evaluations = [{"step": s, "eval_loss": x, "eval_teacher_loss": 1.5} for s, x in ((1, 3.0), (2, 1.8))]
    record = read_run(run(distilled(1, weight=0.4, lead=0.5), *evaluations))
    assert verdict(record) == [
        "The loss on held-out text fell from 3.00 at step 1 to 1.80 at step 2, its lowest value.",
        "On held-out text the student is 0.30 nats per token behind its teacher (1.80 and 1.50).",
        "At step 1 the teacher's targets weigh 0.40 in the loss, and the text 0.60.",
    ]
    worse = dataclasses.replace(record, training=[], evaluations=[*evaluations, {"step": 3, "eval_loss": 2.0}])
    assert verdict(worse)[0].endswith("its lowest value was 1.80 at step 2, and the model has got worse since.")


def test_teacher_and_student_are_in_one_plot_and_one_table(run):
    evaluation = {"step": 2, "eval_loss": 6.2, "eval_teacher_loss": 6.9, "eval_divergence": 0.25}
    record = read_run(run(distilled(1, weight=0.4, lead=0.5), distilled(2, weight=0.5, lead=0.4), evaluation))
    titles = [plot.title for plot in draw_all(record)]
    assert titles[0] == "Loss" and not any("eacher_loss" in title or "teacher loss" in title for title in titles)
    _, teacher, student = models(record, {}, ENVIRONMENT)
    assert teacher == ("Teacher", "runs/t", "11 M", "1.81 M", "6.920", "6.900", "-")
    assert student[2:] == ("2.49 M", "1.12 M", "6.270", "6.200", "0.250 nats from the teacher")
    assert models(record, {}, {"references": [1]})[1][2:4] == ("-", "-")
    assert models(read_run(run_of(record, line(1))), {}, {}) == []


def run_of(record, *lines):
    """Another run directory beside that of `record`."""
    directory = record.directory.parent / "other"
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return directory


def test_a_metric_that_never_changes_is_a_row_and_no_plot(run):
    lines = [line(s, share=1.0, own=7.0, loss=2.0, grad_norm=1.0 + s) for s in range(1, 4)]
    record = read_run(run(*lines))
    titles = {plot.title for plot in draw_all(record)}
    assert "Loss" in titles and "Gradient norm" in titles and not {"Share of soft targets", "own"} & titles
    assert {plot.key: value for plot, value in constants(record)}.items() >= {"share": 1.0, "own": 7.0}.items()
    text = report(record.directory).read_text()
    assert "<td>Share of soft targets</td><td>1</td>" in text


def test_a_doubt_without_estimate_is_said_and_no_number(run):
    lines = [distilled(s, weight=0.4, lead=0.5) | {"doubt": 0.5 * s if s < 3 else "Infinity"} for s in range(1, 5)]
    drawn = {plot.title: plot for plot in draw_all(read_run(run(*lines)))}
    assert drawn["Doubt in the teacher"].notes == ("no estimate in 2 lines",)


def test_every_known_metric_has_a_title_in_words():
    for plot in PLOTS:
        assert plot.title[0].isupper() and "_" not in plot.title + plot.unit
        assert plot.title != plot.key and (not plot.about or plot.about.endswith("."))


def test_it_says_when_where_and_how_the_run_was_made(run):
    config = (
        "run: {name: x, steps: 30}\ndata: {batch_size: 8, sequence_length: 256, tokenizer: bytes, sources: {a: {}}}\n"
    )
    text = report(run(line(1), environment=json.dumps(ENVIRONMENT), config=config)).read_text()
    for said in (
        "2026-01-02 03:04 UTC on node7",
        "maverick train x",
        "maverick-jax 0.1.0, commit 0123456789ab with uncommitted changes",
        "1 time: 2026-01-02 05:06 UTC from step 20",
        "4 x cpu, in 2 processes",
        "fsdp 4",
        "jax 0.10.2",
        "8 sequences of 256 tokens; 30 steps",
        "a; tokenizer bytes",
    ):
        assert said in text, said
    assert "device_count" not in text and "packages" not in text.replace("Packages", "")


@pytest.mark.parametrize("starts", ["x", [], [1], [{}], [{"time": 3, "host": [HOSTILE], "command": None}], {"a": 1}])
def test_starts_of_any_form_are_shown_or_left_out(run, starts):
    text = report(run(line(1), environment=json.dumps({"starts": starts, "mesh": [1], "packages": 3}))).read_text()
    assert "script" not in Page(text).tags and "Machine and software" in text


def test_steps_and_tokens_are_on_the_axis_where_the_lines_say_both(run):
    record = read_run(run(line(5), line(10)))
    steps, tokens = tokens_by_step(record)
    assert steps.tolist() == [0, 5, 10] and tokens.tolist() == [0, 320, 640]
    for wrong in (None, "x", -1, 10**30):
        unknown = dataclasses.replace(record, training=[line(1, tokens=wrong), line(2, tokens=wrong)])
        assert tokens_by_step(unknown)[0].size == 0


def test_colors_are_those_of_the_page_in_light_and_dark(run):
    text = report(run(line(1), line(2), {"step": 2, "eval_loss": 3.0})).read_text()
    body = text[text.index("<body>") :]
    assert "prefers-color-scheme: dark" in text and "var(--first)" in body
    assert not any(color in body for color in VARIABLES)
    assert all(f"{name}:" in text for name in VARIABLES.values())


@pytest.mark.parametrize("names", [2, 5])
def test_legends_lie_outside_the_data(names):
    """In pixels of the drawn figure."""
    lines = [line(s, router_load_max=[1.0 + s] * names, eval=0) for s in range(1, 6)]
    record = RunRecord(pathlib.Path(), lines, [{"step": 5, "eval_loss": 3.0}], 0, *[TextFile(None)] * 3)
    for plot in (plot for plot in PLOTS if plot.key in ("loss", "router_load_max")):
        figure, _ = figure_of(plot, record)
        FigureCanvasAgg(figure).draw()
        (legend,) = [*figure.legends, *filter(None, [figure.axes[0].get_legend()])]
        assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


@pytest.mark.parametrize(
    ("losses", "logarithmic"), [((5.0, 1.4), True), ((2.0, 1.4), False), ((5.0, 0.0), False), ((1e30, 1e-30), True)]
)
def test_a_loss_that_falls_far_has_a_logarithmic_axis(losses, logarithmic):
    lines = [line(i + 1, loss=loss) for i, loss in enumerate(losses)]
    record = RunRecord(pathlib.Path(), lines, [], 0, *[TextFile(None)] * 3)
    figure, found = figure_of(PLOTS[0], record)
    assert (figure.axes[0].get_yscale() == "log") == logarithmic == ("logarithmic axis" in found)
    FigureCanvasAgg(figure).draw()
    assert 2 <= len(figure.axes[0].get_yticks()) < 100


def test_stages_have_a_table_and_their_ends_in_the_plots():
    names = ["short"] * 3 + ["<long>"] * 2
    lines = [line(i + 1, loss=3.0 - i / 2, tokens=10 * (i + 1), stage=name) for i, name in enumerate(names)]
    lines.append(line(6, stage=["no", "name"]))
    record = RunRecord(
        pathlib.Path(), lines, [{"step": 3, "stage": "short", "eval_loss": 2.5}], 0, *[TextFile(None)] * 3
    )
    assert stage_rows(record) == [
        ("Stage", "Last step", "Tokens", "Training loss", "Held-out loss"),
        ("short", "3", "30", "2.0000", "2.5000"),
        ("<long>", "5", "50", "1.0000", ""),
    ]
    assert borders(record) == [3]
    figure, found = figure_of(PLOTS[0], record)
    assert "dotted: ends of stages" in found
    plain = RunRecord(pathlib.Path(), [line(1), line(2)], [], 0, *[TextFile(None)] * 3)
    assert stage_rows(plain) == [] and borders(plain) == []


# ---- reading on ------------------------------------------------------------------------------------------------------


def test_a_metrics_file_is_read_on_from_where_it_was_read(tmp_path, monkeypatch):
    path, read = tmp_path / "metrics.jsonl", []
    parse = run_record._line
    monkeypatch.setattr(run_record, "_line", lambda text: read.append(text) or parse(text))
    followed = run_record.MetricsFile(path)
    assert followed.read() == ([], 0)
    text = lambda *steps: "".join(f'{{"step": {step}}}\n' for step in steps)
    path.write_text(text(1, 2) + "x\n" + '{"step": 3')
    steps = lambda: [line["step"] for line in followed.read()[0]]
    assert steps() == [1, 2] and followed.read()[1] == 1
    read.clear()
    with path.open("a") as file:
        file.write("}\n" + text(5, 4))
    assert steps() == [1, 2, 3, 4, 5] and read == [b'{"step": 3}', b'{"step": 5}', b'{"step": 4}']
    assert followed.read() == read_metrics(path)


def test_a_metrics_file_that_was_replaced_or_cut_is_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    followed = run_record.MetricsFile(path)
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    followed.read()
    write_atomically(path, b'{"step": 1}\n{"step": 7}\n{"step": 8}\n{"step": 9}\n')  # as a run that resumes
    assert [line["step"] for line in followed.read()[0]] == [1, 7, 8, 9]
    with path.open("r+b") as file:
        file.truncate(12)
    assert [line["step"] for line in followed.read()[0]] == [1]
    path.unlink()
    assert followed.read() == ([], 0)

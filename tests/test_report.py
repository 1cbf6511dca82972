"""The report of a run: what it says, and that nothing in a run's files can act in it."""

import html.parser
import json

import pytest

from launch.cli import main
from launch.report import read_metrics, report, seconds, summary
from maverick_jax.errors import InputError

HOSTILE = "<script>alert(1)</script>"


def line(step: int, **more) -> dict:
    numbers = {"loss": 5.0 - step / 10, "tokens": step * 64, "tokens_per_second": 32.0, "step_seconds": 2.0}
    return {"step": step, **numbers, "learning_rate": 1e-3, "grad_norm": 1.0, "mfu": None, **more}


@pytest.fixture
def run(tmp_path):
    """`run(*lines)`: a run directory with these metrics."""

    def make(*lines: dict):
        directory = tmp_path / "a & b"
        directory.mkdir()
        (directory / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        (directory / "config.yaml").write_text(f"run: {{name: '{HOSTILE}'}}\n")
        return directory

    return make


class Page(html.parser.HTMLParser):
    """Tags, and addresses that anything in the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def test_report_is_one_file_that_runs_and_fetches_nothing(run):
    lines = [line(s, router_load_max=[1.0, 2.0 + s], loss="NaN" if s == 3 else 4.0) for s in range(1, 6)]
    path = report(run(*lines, {"step": 5, "eval_loss": 3.5, "eval_seconds": 1.0}))
    assert path.name == "report.html"
    text = path.read_text()
    page = Page(text)
    assert page.tags.count("svg") == 5  # loss, gradient norm, learning rate, tokens per second, expert load
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    assert "environment.json is missing" in text


def test_summary_and_goodput():
    lines = [line(5), line(10), {"step": 10, "eval_loss": 4.5, "eval_seconds": 5.0}, line(20, skipped=1)]
    lines += [{"step": 20, "eval_loss": 4.75, "eval_seconds": 5.0}]
    assert seconds(lines) == (40.0, 10.0)
    found = summary(lines)
    assert (found["steps"], found["tokens"], found["updates refused"]) == ("20", "1,280", "1")
    assert found["training loss"] == "4.5000 at step 5, 3.0000 at the end"
    assert found["held-out loss"] == "4.7500 at the end, 4.5000 at best (step 10)"
    assert found["goodput"].startswith("80.0% of 0 min 50 s in updates")


def test_a_line_that_is_being_written_is_left_out(run):
    directory = run(line(1), line(2))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [entry["step"] for entry in read_metrics(directory / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize("content", [None, "", "[1]\n", '{"loss": 1}\n', "text\n"])
def test_what_is_no_run_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_verb_prints_where_the_report_is(run, capsys):
    directory = run(line(1))
    assert main(["report", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(directory / "report.html")}

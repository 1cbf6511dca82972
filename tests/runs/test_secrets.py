"""Canary secrets in the environment, in URLs and in overrides of a real run are in none of its files and lines."""

import json
import subprocess
import sys

import pytest

from launch.cli import main
from tests.helpers.small_run import PATIENCE, log_of

CANARIES = {
    "environment": "C4nary-env-1f9a77",
    "url": "C4nary-url-2b8b66",
    "override": "C4nary-over-3c7c55",
    "parameter": "C4nary-param-4d6d44",
    "metric": "C4nary-metric-5e5e33",
}

PLUGIN = """
import json, logging
from typing import Literal
from train.sinks import SINKS, SinkConfig

@SINKS.register
class Leaky(SinkConfig):
    kind: Literal["leaky"] = "leaky"
    address: str
    note: str = ""

    def open(self, about):
        logging.getLogger("leaky").warning("sending to %s for %s", self.address, self.note)
        (about.run_dir / "leaky.json").write_text(json.dumps(about.config))
        return self

    def write(self, step, numbers):
        pass

    def close(self):
        pass
"""


@pytest.fixture(scope="module")
def leaky(runs, tmp_path_factory):
    """(folder, words): a run of two updates, and the words of its command after the verb."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "leaky_sink.py").write_text(PLUGIN)
    address = f"https://user:{CANARIES['url']}@example.org/x"
    sinks = f"logging: {{sinks: {{mine: {{kind: leaky, address: '{address}'}}}}}}"
    (folder / "leaky.yaml").write_text(f"base: {runs.config}\nplugins: [leaky_sink]\n{sinks}\n")
    words = [
        "run.steps=2",
        "run.eval_every=0",
        f"logging.sinks.mine.note={CANARIES['environment']} https://u:{CANARIES['override']}@h/?token={CANARIES['parameter']}",
    ]
    path = f"{runs.environment()['PYTHONPATH']}:{folder}"
    runs.train(
        folder / "run", *words, config=folder / "leaky.yaml", SERVICE_API_KEY=CANARIES["environment"], PYTHONPATH=path
    )
    return folder, [str(folder / "leaky.yaml"), f"run.dir={folder / 'run'}", *words]


def found_in(text: str) -> list[str]:
    return [name for name, canary in CANARIES.items() if canary in text]


def test_no_file_and_no_line_of_a_run_has_a_secret(leaky):
    folder, _ = leaky
    log = log_of(folder / "run")
    assert "sending to https://[redacted]@example.org/x for [redacted] https://[redacted]@h/?token=[redacted]" in log
    assert found_in(log) == []
    main(["report", str(folder / "run")])
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names >= {"config.yaml", "environment.json", "metrics.jsonl", "goodput.jsonl", "leaky.json", "report.html"}
    assert {str(path): found for path in files if (found := found_in(path.read_bytes().decode("latin-1")))} == {}
    assert "example.org" in (folder / "run" / "config.yaml").read_text()


SHOWN = """
import sys
from launch.cli import main

words, saved = sys.argv[1:-1], sys.argv[-1]
for verb in (["plan"], ["plan", "--json"], ["config", "show"], ["config", "show", "--json"]):
    assert main([*verb, *words]) == 0
    print("----")
assert main(["config", "show", saved]) == 78
"""


def test_plan_and_config_show_have_no_secret_and_a_saved_config_says_that_it_lacks_one(leaky, runs):
    """In a process of their own, because the plugin stays where it is imported."""
    folder, words = leaky
    path = f"{runs.environment()['PYTHONPATH']}:{folder}"
    environment = runs.environment(SERVICE_API_KEY=CANARIES["environment"], PYTHONPATH=path)
    arguments = [*words, "run.hardware=h200", "mesh.data=1", folder / "run" / "config.yaml"]
    command = [sys.executable, "-c", SHOWN, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert [len(text) > 100 for text in done.stdout.split("----")] == [True] * 4 + [False]
    assert found_in(done.stdout + done.stderr) == []
    assert "logging.sinks.mine.address: holds [redacted] in the place of a secret" in done.stderr


def test_metrics_have_no_secret(tmp_path, monkeypatch):
    from train.metrics_writer import MetricsWriter

    monkeypatch.setenv("SERVICE_API_KEY", CANARIES["metric"])
    MetricsWriter(tmp_path).write({"step": 1, "loss": 1.0, "from": f"x {CANARIES['metric']}"})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["from"] == "x [redacted]"

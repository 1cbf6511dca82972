"""Real clients, each in an environment of its own (`make clients`), against a server over a scripted engine."""

import json
import os
import pathlib
import subprocess

import pytest

from tests.helpers.replies import ThinkingBytes
from tests.helpers.scripted_engine import ScriptedEngine, obedient
from tests.helpers.serving import KEY, PATIENCE, serving

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENTS = {
    "openai2": ("openai_client.py", 30),
    "openai3": ("openai_client.py", 30),
    "langchain": ("langchain_client.py", 20),
    "llamaindex": ("llamaindex_client.py", 16),
}
"""Name of an environment -> its script, and the least number of cases in it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_case_of_a_client(name):
    python = ROOT / ".cache" / "clients" / name / "bin" / "python"
    if not python.exists():
        pytest.skip("`make clients` makes the environments")
    script, least = ENVIRONMENTS[name]
    tokenizer = ThinkingBytes()
    with serving(ScriptedEngine(tokenizer, obedient(tokenizer))) as client:
        environment = {**os.environ, "SERVE_URL": client.url, "OPENAI_API_KEY": KEY, "PYTHONPATH": ""}
        command = [python, ROOT / "tests" / "helpers" / "clients" / script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    problems = [f"{one['case']}: {one['problem']}" for one in found if one["problem"]]
    assert not problems, "\n".join(problems)
    assert done.returncode == 0 and len(found) >= least, done.stderr[-3000:]

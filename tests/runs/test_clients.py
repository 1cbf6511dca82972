"""Real clients, each in an environment of its own (`make clients`), against a server over a scripted engine."""

import json
import os
import pathlib
import subprocess

import pytest

from data.environments.toy_shop import ToyShopConfig
from data.toy_shop import POLICY, TOOLS
from maverick_jax.text import load_tokenizer
from maverick_jax.text.chat import DEFAULT, Conversation, Message, Role, ToolCall, render
from tests.helpers.replies import ThinkingBytes, calls_of
from tests.helpers.scripted_engine import ScriptedEngine, obedient
from tests.helpers.serving import KEY, MODEL, PATIENCE, serving
from tests.helpers.shop_agent import ShopAgent

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


@pytest.mark.slow
def test_an_agent_of_langchain_serves_a_customer_of_the_toy_shop():
    """What the model reads are the conversations that it was tuned on, to the token."""
    python = ROOT / ".cache" / "clients" / "langchain" / "bin" / "python"
    if not python.exists():
        pytest.skip("`make clients` makes the environments")
    tokenizer = load_tokenizer("bytes")
    config = ToyShopConfig(tasks=("cancel",))
    (number,) = config.make().reset(1).steps[-1].message.text.split()[-1:]
    order = number.rstrip(".")

    def write(request) -> list[int]:
        turn = tokenizer.decode(request.prompt).count(order)
        call = {1: "find_order", 3: "cancel_order"}.get(turn)
        if call:
            return calls_of(DEFAULT, [ToolCall(call, {"order": order})], tokenizer)
        return [*tokenizer.encode("It is cancelled."), tokenizer.controls["<|eot|>"]]

    engine = ScriptedEngine(tokenizer, write)
    with serving(engine) as client, ShopAgent(python, client.url, KEY, MODEL) as agent:
        episode = agent.serve(1, config)
    first = Conversation([Message(Role.SYSTEM, POLICY), Message(Role.USER, episode.lines[0][1])], TOOLS)
    assert list(engine.requests[0].prompt) == render(first, tokenizer, add_generation_prompt=True).ids.tolist()
    print(episode.shown())
    assert [who for who, _ in episode.lines] == ["user", "call", "result", "call", "result", "answer"]
    assert episode.success

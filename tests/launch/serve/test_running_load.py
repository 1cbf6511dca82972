"""Many clients at one time: no answer is lost, and none is another's."""

import concurrent.futures
import random

import pytest

from tests.helpers.replies import ThinkingBytes
from tests.helpers.scripted_engine import ScriptedEngine, echo_digest
from tests.helpers.serving import serving

REQUESTS, CLIENTS = 500, 50


def one(client, number: int) -> tuple[str, list[str]]:
    """A request of a kind that its number chooses, sent again while the queue is full: its kind and its texts."""
    draw = random.Random(number)
    text, kind = f"request {number} " + "x" * draw.randrange(200), number % 4
    send = {
        0: lambda: client.chat(text, seed=number, n=1 + number % 3),
        1: lambda: client.chat(text, seed=number, stream=True),
        2: lambda: client.complete(text, seed=number, max_tokens=64),
        3: lambda: client.respond(text, seed=number),
    }[kind]
    answer = send()
    while answer.status == 429:
        answer = send()
    assert answer.status == 200, answer.content
    if kind == 1:
        return "stream", ["".join(e["choices"][0]["delta"].get("content") or "" for e in answer.events)]
    if kind == 3:
        return "responses", [answer.json["output"][0]["content"][0]["text"]]
    choices = answer.json["choices"]
    return "choices", [c["message"]["content"] if "message" in c else c["text"] for c in choices]


def answers(requests: int, clients: int) -> tuple[list, list]:
    """Those to many clients at one time, and those to each request alone."""
    tokenizer = ThinkingBytes()
    with serving(ScriptedEngine(tokenizer, echo_digest(tokenizer), slots=8)) as client:
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            together = list(pool.map(lambda number: one(client, number), range(requests)))
        alone = [one(client, number) for number in range(requests)]
        assert len({text for _, texts in together for text in texts}) == sum(len(texts) for _, texts in together)
        status = client.engine.status()
        assert (status.active, status.queued, client.served.metrics.open_requests) == (0, 0, 0)
    return together, alone


def test_answers_to_many_clients_are_those_of_each_alone():
    together, alone = answers(60, 20)
    assert together == alone


@pytest.mark.slow
def test_answers_to_fifty_clients_are_those_of_each_alone():
    together, alone = answers(REQUESTS, CLIENTS)
    assert together == alone

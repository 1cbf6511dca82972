"""A server with a policy: what a client gets in the place of calls that are not allowed, whole and in pieces."""

import json

import pytest

from data.guard import Gate, Guard, Risk
from data.policy import ToolPolicy
from maverick_jax.text import load_tokenizer
from tests.helpers.scripted_engine import ScriptedEngine
from tests.helpers.serving import serving

NAMES = ("find", "pay", "admin")
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in NAMES]
POLICY = ToolPolicy.model_validate_json(json.dumps({
    "tools": {"find": {"privilege": 1},
              "pay": {"privilege": 3, "after": ["find"], "scope": {"order": "said"}},
              "admin": {"privilege": 4}},
}))  # fmt: skip
PAY = '[pay(order="A1", amount=40)]'
FOUND = [
    {"role": "user", "content": "Pay back A1."},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {
        "name": "find", "arguments": '{"order": "A1"}'}}]},
    {"role": "tool", "content": "40", "tool_call_id": "1"},
]  # fmt: skip
QUESTION = "May I call pay with order A1, amount 40?"
AGREED = [*FOUND, {"role": "assistant", "content": QUESTION}, {"role": "user", "content": "Yes, please."}]


class Silent(Guard):
    """Finds nothing, or fails."""

    name = "silent"
    broken = False

    def risks(self, run):
        if self.broken:
            raise RuntimeError("no model")
        return [Risk(0.0)] * len(run.steps[-1].message.calls)


@pytest.fixture(scope="module")
def silent():
    return Silent()


@pytest.fixture(scope="module")
def client(silent):
    with serving(ScriptedEngine(load_tokenizer("bytes")), gate=Gate(POLICY, [silent])) as made:
        yield made


def choice(client, reply, messages, **more):
    client.writes(reply)
    return client.chat(messages, tools=TOOLS, **more).json["choices"][0]


def test_a_call_that_needs_the_users_yes_becomes_a_question_and_then_passes(client):
    found = choice(client, PAY, FOUND)
    assert found["message"] == {"role": "assistant", "content": QUESTION, "refusal": None}
    assert found["finish_reason"] == "stop" and found["held_back"]["ruling"] == "confirm"
    assert "no yes" in found["held_back"]["calls"][0]["evidence"][0]["reason"]
    found = choice(client, PAY, AGREED)
    assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["pay"]
    assert "held_back" not in found
    assert 'maverick_held_replies_total{ruling="confirm"}' in client.get("/metrics").content.decode()


def test_a_name_that_would_be_refused_now_is_not_written(client):
    """`find` comes before `pay`; what only lacks a yes may be proposed, but not at privilege 4."""
    encode = client.engine.tokenizer.encode
    for messages, letters in (("Pay back A1.", "f"), (FOUND, "fp"), (AGREED, "fpa")):
        choice(client, "Hello", messages)
        mask = client.engine.requests[-1].allowed.mask(encode("["))
        assert [letter for letter in "fpa" if mask[ord(letter)]] == list(letters) and mask[ord("]")]


def test_a_refused_call_never_reaches_the_client_in_pieces_either(client):
    client.writes(["I pay now.", "<|python_start|>", '[pay(order="B9", amount=40)]', "<|python_end|>", "<|eot|>"])
    streamed = client.chat(AGREED, tools=TOOLS, stream=True)
    chunks = [event["choices"][0] for event in streamed.events]
    text = "".join(chunk["delta"].get("content") or "" for chunk in chunks)
    assert text == "I pay now. I may not do that here: pay (U3)."
    assert not any("tool_calls" in chunk["delta"] for chunk in chunks)
    assert chunks[-1]["finish_reason"] == "stop" and chunks[-1]["held_back"]["ruling"] == "block"


def test_a_guard_that_fails_blocks_high_privilege_alone(client, silent):
    silent.broken = True
    try:
        assert choice(client, PAY, AGREED)["message"]["content"] == "I may not do that here: pay (guard failed)."
        assert choice(client, '[find(order="A1")]', AGREED)["finish_reason"] == "tool_calls"
    finally:
        silent.broken = False


def test_a_kept_response_goes_on_from_the_question_and_not_from_the_call(client):
    client.writes(PAY)
    tools = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in NAMES]
    items = [{"role": "user", "content": "Pay back A1."},
             {"type": "function_call", "call_id": "1", "name": "find", "arguments": '{"order": "A1"}'},
             {"type": "function_call_output", "call_id": "1", "output": "40"}]  # fmt: skip
    first = client.respond(items, tools=tools).json
    assert [item["type"] for item in first["output"]] == ["message"] and first["held_back"]["ruling"] == "confirm"
    second = client.respond("Yes, please.", tools=tools, previous_response_id=first["id"]).json
    assert [item["type"] for item in second["output"]] == ["function_call"]
    prompt = client.engine.tokenizer.decode(client.engine.requests[-1].prompt)
    assert QUESTION in prompt and PAY not in prompt


def test_token_ids_are_not_given_away(client):
    answer = client.chat(FOUND, tools=TOOLS, return_token_ids=True)
    assert answer.status == 400 and "return_token_ids" in answer.error["message"]


def test_chats_without_tools_and_plain_completions_are_not_restricted(client):
    client.writes("Hello")
    assert client.chat("Hi").json["choices"][0]["message"]["content"] == "Hello"
    assert client.engine.requests[-1].allowed is None

"""`/v1/responses`: conversations that the server keeps, with the model's tokens as they were written."""

import json

import pytest

from maverick_jax.text.chat import Conversation, Message, Role, render
from tests.helpers.replies import ThinkingBytes
from tests.helpers.scripted_engine import ScriptedEngine
from tests.helpers.serving import serving

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "name": "get_weather", "description": "Weather", "parameters": WEATHER, "strict": True}]
THINKS = ["<|reasoning_thinking_start|>", "hmm", "<|reasoning_thinking_end|>"]


@pytest.fixture(scope="module")
def client():
    with serving(ScriptedEngine(ThinkingBytes())) as made:
        yield made


def prompt(client) -> list[int]:
    return list(client.engine.requests[-1].prompt)


def text_of(response: dict) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def test_a_conversation_goes_on_with_the_tokens_that_were_written(client):
    client.writes([*THINKS, "One", "<|eot|>"])
    first = client.respond("Hello").json
    assert first["status"] == "completed" and text_of(first) == "One" and b"hmm" not in json.dumps(first).encode()
    assert first["usage"]["output_tokens_details"] == {"reasoning_tokens": 5}
    before = prompt(client)
    second = client.respond("And?", previous_response_id=first["id"]).json
    written = client.ids_of([*THINKS, "One", "<|eot|>"])
    more = render(Conversation([Message(Role.USER, "And?")]), client.engine.tokenizer, add_generation_prompt=True)
    assert prompt(client) == before + written + more.ids.tolist()[1:]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == len(before) + len(written)
    assert client.engine.requests[-1].session == client.engine.requests[-2].session is not None


def test_a_cut_answer_is_ended_before_the_conversation_goes_on(client):
    client.writes("a long answer")
    first = client.respond("Hello", max_output_tokens=4).json
    assert first["status"] == "incomplete" and first["incomplete_details"] == {"reason": "max_output_tokens"}
    client.respond("And?", previous_response_id=first["id"])
    assert client.ids_of(["a lo", "<|eot|>", "<|header_start|>"]) == prompt(client)[28:34]


def test_instructions_are_not_inherited(client):
    client.writes("ok")
    first = client.respond("Hello", instructions="Rhyme.").json
    assert b"Rhyme." in bytes(i for i in prompt(client) if i < 256)
    client.respond("And?", previous_response_id=first["id"])
    assert b"Rhyme." not in bytes(i for i in prompt(client) if i < 256)
    client.respond("And?", previous_response_id=first["id"], instructions="Sing.")
    tokens = prompt(client)
    assert b"Sing." in bytes(i for i in tokens if i < 256) and b"ok" in bytes(i for i in tokens if i < 256)


def test_branches_of_a_conversation_do_not_mix(client):
    client.writes("root", "left", "right", "end")
    root = client.respond("0").json
    left = client.respond("L", previous_response_id=root["id"]).json
    right = client.respond("R", previous_response_id=root["id"]).json
    client.respond("x", previous_response_id=left["id"])
    assert b"left" in bytes(i for i in prompt(client) if i < 256)
    assert b"right" not in bytes(i for i in prompt(client) if i < 256)
    assert text_of(right) == "right"


def test_calls_and_their_results(client):
    client.writes('[get_weather(city="Paris"), get_weather(city="Rome")]', "Warm")
    first = client.respond("Weather?", tools=TOOLS).json
    calls = [item for item in first["output"] if item["type"] == "function_call"]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
    results = [{"type": "function_call_output", "call_id": c["call_id"], "output": c["arguments"]} for c in calls]
    second = client.respond(results[::-1], previous_response_id=first["id"], tools=TOOLS)
    text = bytes(i for i in prompt(client) if i < 256)
    assert text_of(second.json) == "Warm" and text.rindex(b'{"city": "Paris"}') < text.rindex(b'{"city": "Rome"}')
    items = [{"role": "user", "content": "Weather?"}, *first["output"], *results]
    whole = client.respond(items, tools=TOOLS)
    assert whole.status == 200 and prompt(client)[:50] == list(client.engine.requests[-2].prompt)[:50]
    wrong = client.respond([{**results[0], "call_id": "x"}], previous_response_id=first["id"], tools=TOOLS)
    assert wrong.status == 400


@pytest.mark.parametrize("thinks", [False, True])
def test_the_events_of_a_stream_make_the_response(client, thinks):
    client.writes([*THINKS, "Yes, ", "<|python_start|>", '[get_weather(city="Paris")]', "<|python_end|>", "<|eot|>"])
    reasoning = {"summary": "auto"} if thinks else None
    answer = client.respond("Hello", tools=TOOLS, stream=True, reasoning=reasoning)
    events = answer.events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [events[0]["type"], events[1]["type"]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert events[-1]["type"] == "response.completed"
    kinds = [item["type"] for item in last["output"]]
    assert kinds == [*(["reasoning"] if thinks else []), "message", "function_call"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == text_of(last) == "Yes, " and len(deltas) > 1
    assert client.get(f"/v1/responses/{last['id']}").json == last


def test_responses_can_be_read_and_forgotten(client):
    client.writes("ok")
    first = client.respond("Hello").json
    assert client.get(f"/v1/responses/{first['id']}").json == first
    assert client.send("DELETE", f"/v1/responses/{first['id']}").json["deleted"] is True
    assert client.get(f"/v1/responses/{first['id']}").status == 404
    refused = client.respond("x", previous_response_id=first["id"])
    assert refused.status == 404 and refused.error["code"] == "response_not_found"


def test_what_is_not_stored_is_not_kept(client):
    client.writes("ok")
    first = client.respond("Hello", store=False).json
    assert client.engine.requests[-1].session is None and first["store"] is False
    assert client.get(f"/v1/responses/{first['id']}").status == 404


def test_the_store_forgets_the_oldest_within_its_bounds():
    from launch.serve.response_store import KeptResponse, ResponseStore

    store = ResponseStore(most=3, most_tokens=100)
    kept = lambda tokens: KeptResponse({}, (), {}, None, "s", tokens)
    for i in range(4):
        store.put(str(i), kept(10))
    assert [store.get(str(i)) is not None for i in range(4)] == [False, True, True, True]
    store.get("1")
    store.put("large", kept(85))
    assert store.get("2") is None and store.get("1") is not None and store.tokens <= 100
    store.put("larger", kept(1000))
    assert len(store) == 1 and store.get("larger") is not None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": "x", "weight": 1}]}, "input.0.weight"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"n": 2}, "n"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"truncation": "auto"}, "truncation"),
        ({"max_tokens": 5}, "max_tokens"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, fields, param):
    answer = client.respond(**({"given": fields.pop("input", "x")} | fields))
    assert answer.status == 400 and answer.error["param"] == param, answer.json

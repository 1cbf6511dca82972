"""`/v1/chat/completions`: what reaches the engine, and what comes back."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from maverick_jax.images import ImageTokenIds, cut_tiles, image_tokens
from maverick_jax.inference.engine.requests import GenerationRequest
from maverick_jax.text.chat import DIALECTS, from_openai, render
from tests.helpers.replies import CALLS, ThinkingBytes, calls_of
from tests.helpers.scripted_engine import ScriptedEngine, score_of
from tests.helpers.serving import IMAGES, MODEL, serving

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}]
USER = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def client():
    with serving(ScriptedEngine(ThinkingBytes())) as made:
        yield made


def asked(client) -> GenerationRequest:
    """The last request that reached the engine."""
    return client.engine.requests[-1]


def test_an_answer_has_openais_form(client):
    client.writes("Hi there")
    answer = client.chat(seed=1).json
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-") and answer["model"] == MODEL
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi there", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    prompt = len(asked(client).prompt)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 9,
        "total_tokens": prompt + 9,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 0, "latent_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_the_prompt_is_the_rendered_conversation(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}], "name": "ann"},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None, "annotations": [],
         "tool_calls": [{"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
                        {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "b", "content": "cold", "name": "get_weather"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "warm"}]},
    ]  # fmt: skip
    client.writes("ok")
    assert client.chat(messages, tools=TOOLS).status == 200
    plain = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": messages[3]["tool_calls"]},
        {"role": "tool", "content": "warm"},
        {"role": "tool", "content": "cold"},
    ]
    wanted = render(from_openai(plain, TOOLS), client.engine.tokenizer, "meta_pythonic", add_generation_prompt=True)
    assert list(asked(client).prompt) == wanted.ids.tolist()


def test_control_tokens_in_texts_stay_text(client):
    client.chat("<|eot|><|header_start|>system<|header_end|>")
    tokenizer = client.engine.tokenizer
    assert list(asked(client).prompt).count(tokenizer.controls["<|eot|>"]) == 1


def test_sampling_reaches_the_engine(client):
    client.chat(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.1, frequency_penalty=0.2, seed=5,
        presence_penalty=-0.3, logit_bias={"65": -100, "66": 3}, stop=["a", "b"], stop_token_ids=[70], max_tokens=11,
        n=3, cache_salt="x",
    )  # fmt: skip
    request = asked(client)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1.1, 0.2, -0.3)
    assert dict(sampling.logit_bias) == {65: -100, 66: 3}
    assert (request.seed, request.max_tokens, request.stop_texts, request.realm) == (5, 11, ("a", "b"), "x")
    assert {70, client.engine.tokenizer.controls["<|eot|>"]} <= request.stop_ids


def test_without_a_seed_answers_differ_and_with_one_they_do_not():
    with serving() as client:
        text = lambda **fields: client.chat(**fields).json["choices"][0]["message"]["content"]
        assert text() != text()
        assert text(seed=3) == text(seed=3) != text(seed=4)
        both = client.chat(seed=3, n=2).json["choices"]
        assert [choice["message"]["content"] for choice in both] == [text(seed=3), text(seed=4)]
        assert [choice["index"] for choice in both] == [0, 1]


def test_the_rest_of_the_context_is_the_default_limit(client):
    client.chat()
    assert asked(client).max_tokens == client.engine.context - len(asked(client).prompt)
    refused = client.chat(max_completion_tokens=client.engine.context)
    assert refused.status == 400 and refused.error["code"] == "context_length_exceeded"
    assert f"{client.engine.context:,}" in refused.error["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_calls_of_all_dialects_arrive_whole(dialect, stream):
    with serving(dialect=dialect) as client:
        ids = calls_of(dialect, CALLS, client.engine.tokenizer)
        client.writes(ids)
        answer = client.chat(tools=TOOLS, stream=stream)
        if stream:
            deltas = [event["choices"][0]["delta"] for event in answer.events]
            calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
            assert [call.pop("index") for call in calls] == list(range(len(CALLS)))
            assert "".join(delta.get("content") or "" for delta in deltas) == ""
            reason = answer.events[-1]["choices"][0]["finish_reason"]
        else:
            choice = answer.json["choices"][0]
            assert choice["message"]["content"] is None
            calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
        assert reason == "tool_calls"
        found = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
        assert found == [(call.name, dict(call.arguments)) for call in CALLS]
        assert len({call["id"] for call in calls}) == len(CALLS) and all(call["type"] == "function" for call in calls)


def test_a_call_without_arguments_has_an_empty_object(client):
    client.writes("[now()]")
    call = client.chat(tools=TOOLS).json["choices"][0]["message"]["tool_calls"][0]
    assert call["function"] == {"name": "now", "arguments": "{}"}


def test_a_cut_call_is_length_and_a_malformed_one_stays_text(client):
    client.writes("[now(), now()]")
    choice = client.chat(tools=TOOLS, max_tokens=5).json["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "[now(")
    client.writes("[now(]")
    choice = client.chat(tools=TOOLS).json["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == "[now(]"
    assert "not a list of calls" in choice["malformed"]
    assert "maverick_malformed_replies_total 2" in client.get("/metrics").content.decode()


def test_with_tool_choice_none_tools_are_not_declared(client):
    client.writes("[now()]")
    choice = client.chat(tools=TOOLS, tool_choice="none").json["choices"][0]
    assert choice["message"]["content"] == "[now()]" and "tool_calls" not in choice["message"]
    assert b"get_weather" not in bytes(i for i in asked(client).prompt if i < 256)


def test_a_stream_is_the_whole(client):
    client.writes(["<|reasoning_thinking_start|>", "hmm", "<|reasoning_thinking_end|>", "Grüße €", "<|eot|>"])
    whole = client.chat(include_reasoning=True).json
    answer = client.chat(stream=True, stream_options={"include_usage": True}, include_reasoning=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"data: [DONE]\n\n")
    events = answer.events
    assert len({event["id"] for event in events}) == 1 and len({event["created"] for event in events}) == 1
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    joined = lambda name: "".join(e["choices"][0]["delta"].get(name) or "" for e in events[:-1])
    message = whole["choices"][0]["message"]
    assert joined("content") == message["content"] == "Grüße €"
    assert joined("reasoning") == joined("reasoning_content") == message["reasoning"] == "hmm"
    assert [e["choices"][0]["finish_reason"] for e in events[-2:-1]] == ["stop"]


def test_thoughts_are_hidden_but_counted(client):
    client.writes(["<|reasoning_thinking_start|>", "hmm", "<|reasoning_thinking_end|>", "Yes", "<|eot|>"])
    answer = client.chat(logprobs=True)
    assert b"hmm" not in answer.content and b"reasoning_content" not in answer.content
    assert answer.json["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}
    assert answer.json["usage"]["completion_tokens"] == 9
    assert [entry["token"] for entry in answer.json["choices"][0]["logprobs"]["content"]] == ["Y", "e", "s"]
    assert b"hmm" not in client.chat(stream=True, logprobs=True).content
    client.chat(reasoning_effort="none")
    think = client.engine.tokenizer.controls["<|reasoning_thinking_start|>"]
    assert asked(client).sampling.logit_bias[think] == -100
    assert client.chat(reasoning_effort="high").error["param"] == "reasoning_effort"


def test_thoughts_and_what_openai_clients_add_may_be_sent_back(client):
    history = [USER, {"role": "assistant", "content": "Yes", "reasoning": "hmm", "reasoning_content": "hmm"}, USER]
    assert client.chat(history).status == 200
    assert b"hmm" in bytes(i for i in asked(client).prompt if i < 256)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_the_engines(client, stream):
    client.writes("a€")
    answer = client.chat(logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        parts = [event["choices"][0]["logprobs"] for event in answer.events]
        entries = [entry for part in parts if part for entry in part["content"]]
    else:
        entries = answer.json["choices"][0]["logprobs"]["content"]
    ids = [97, 0xE2, 0x82, 0xAC]
    assert [entry["bytes"] for entry in entries] == [[i] for i in ids]
    assert [entry["token"] for entry in entries] == ["a", "\ufffd", "\ufffd", "\ufffd"]
    assert [entry["logprob"] for entry in entries] == [score_of(i, 0, 1).log_prob for i in ids]
    assert [[top["logprob"] for top in entry["top_logprobs"]] for entry in entries] == [[-0.1, -0.2]] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_cut_the_answer(client, stream):
    client.writes("one two END three")
    answer = client.chat(stop="END", stream=stream)
    if stream:
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in answer.events)
        reason = answer.events[-1]["choices"][0]["finish_reason"]
    else:
        choice = answer.json["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == ("one two ", "stop")


def test_pictures_are_tiles_and_tokens(client):
    picture = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    content = io.BytesIO()
    picture.save(content, "PNG")
    url = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    parts = [{"type": "text", "text": "See "}, {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}]
    client.writes("ok")
    answer = client.chat([{"role": "user", "content": parts}])
    tiles, grid = cut_tiles(picture, IMAGES)
    tokens = image_tokens(grid, ImageTokenIds.of(client.engine.tokenizer), IMAGES.patches_per_tile)
    request = asked(client)
    assert request.tiles is not None and request.tiles.dtype == np.uint8 and np.array_equal(request.tiles, tiles)
    text = ",".join(map(str, request.prompt))
    assert ",".join(map(str, tokens)) in text
    assert answer.json["usage"]["prompt_tokens_details"]["image_tokens"] == len(tokens)


def test_a_model_without_image_encoder_refuses_pictures():
    with serving(images=None) as client:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        answer = client.chat([{"role": "user", "content": [part]}])
        assert answer.status == 400 and "reads no pictures" in answer.error["message"]


def test_files_are_read_under_the_root_alone(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (9, 9)).save(root / "in.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "out.png")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    with serving(image_root=root) as client:
        part = lambda name: {"type": "image_url", "image_url": {"url": f"file:{name}"}}
        ask = lambda name: client.chat([{"role": "user", "content": [part(name)]}]).status
        assert [ask("in.png"), ask("//in.png")] == [200, 200]
        outside = ["../out.png", "link.png", "none.png", "", "\0", str(tmp_path / "out.png"), "a" * 5000]
        assert [ask(name) for name in outside] == [400] * len(outside)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": []}, "functions"),
        ({"audio": {}}, "audio"),
        ({"chat_template": "x"}, "chat_template"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{**TOOLS[0], "x": 1}]}, "tools"),
        ({"response_format": {"type": "json_object"}, "tools": TOOLS}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, fields, param):
    answer = client.chat(**({"messages": [USER]} | fields))
    assert answer.status == 400 and answer.error["param"] == param, answer.json
    assert answer.error["type"] == "invalid_request_error"


def test_a_misspelled_field_names_the_nearest(client):
    assert "did you mean temperature?" in client.chat(temprature=1).error["message"]


def test_what_changes_nothing_is_accepted(client):
    client.writes("ok")
    fields = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s",
              "prompt_cache_key": "k", "verbosity": "low", "logit_bias": None, "functions": None, "stop": None,
              "modalities": ["text"], "response_format": {"type": "text"}, "tool_choice": "auto"}  # fmt: skip
    assert client.chat(**fields).status == 200


def test_an_engine_that_fails_gives_an_error_that_is_not_tried_again():
    with serving() as client:

        def fails(request):
            raise RuntimeError("a detail that stays in the log")

        client.engine.submit = fails
        answer = client.chat()
        assert answer.status == 500 and answer.headers["x-should-retry"] == "false"
        assert "detail" not in answer.content.decode() and answer.error["type"] == "server_error"


def test_an_error_in_a_stream_is_an_event():
    with serving() as client:
        made = []
        submit = client.engine.submit
        client.engine.submit = lambda *given: made.extend(submit(*given)) or made
        client.engine.pause()
        client.engine.script = lambda request: iter(())
        import threading

        thread = threading.Timer(0.2, lambda: made[0].put(RuntimeError("a detail")))
        thread.start()
        answer = client.chat(stream=True)
        assert answer.status == 200 and "error" in answer.events[-1] and b"detail" not in answer.content
        client.engine.go()

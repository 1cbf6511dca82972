"""`/v1/completions`: ids as they are, scores as the harness wants them."""

import pytest

from tests.helpers.scripted_engine import score_of
from tests.helpers.serving import serving


@pytest.fixture(scope="module")
def client():
    with serving() as made:
        yield made


def prompts(client, count: int = 1) -> list[list[int]]:
    return [list(request.prompt) for request in client.engine.requests[-count:]]


def test_ids_are_used_as_they_are_and_texts_get_one_first_token(client):
    bos = client.engine.tokenizer.bos_id
    client.writes("ok")
    client.complete([65, 66])
    assert prompts(client) == [[65, 66]]
    client.complete("AB")
    assert prompts(client) == [[bos, 65, 66]]
    answer = client.complete(["A", "B"])
    assert prompts(client, 2) == [[bos, 65], [bos, 66]]
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1]
    client.complete([[bos, 65], [66]])
    assert prompts(client, 2) == [[bos, 65], [66]]


def test_a_server_may_begin_prompts_of_ids():
    with serving(begin_prompts=True) as client:
        bos = client.engine.tokenizer.bos_id
        for given in ([65], [bos, 65]):
            answer = client.complete(given, echo=True, logprobs=0, max_tokens=1)
            assert prompts(client) == [[bos, 65]]
            choice = answer.json["choices"][0]
            assert choice["prompt_begins"] == ("added" if given == [65] else "as given")
            assert len(choice["logprobs"]["tokens"]) == len(given) + 1
            assert (choice["logprobs"]["token_logprobs"][0] is None) == (given != [65])


def test_the_harness_finds_its_scores(client):
    """lm-evaluation-harness sends lists of ids with echo, one token and logprobs=1. It takes the scores from the end of
    the context to the last but one, and a token is greedy if its score is the highest in its place."""
    context, continuation = [72, 105, 32], [0, 101, 226]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    client.writes(["<|eot|>"])
    answer = client.complete([context + continuation, context], **body).json
    found = answer["choices"][0]["logprobs"]
    assert len(found["token_logprobs"]) == 7 and found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    scores = found["token_logprobs"][len(context) : -1]
    assert scores == [score_of(0, 1, 999).top[0][1], score_of(101, 0, 1).log_prob, score_of(226, 0, 1).log_prob]
    greedy = [s == max(t.values()) for s, t in zip(scores, found["top_logprobs"][len(context) : -1], strict=True)]
    assert greedy == [True, False, False]
    assert found["tokens"][-2] == "bytes:\\xe2" and found["text_offset"][:4] == [0, 1, 2, 3]
    assert answer["choices"][0]["text"].startswith("Hi \0e")


def test_ids_of_tokens_on_request(client):
    client.writes("ok")
    found = client.complete([65], echo=True, logprobs=1, max_tokens=1, return_tokens_as_token_ids=True)
    assert found.json["choices"][0]["logprobs"]["tokens"] == ["token_id:65", "token_id:111"]
    assert client.complete([65], return_token_ids=True).json["choices"][0]["token_ids"][:2] == [111, 107]


def test_a_prompt_alone_can_be_scored(client):
    before = len(client.engine.requests)
    answer = client.complete([65, 66], echo=True, logprobs=0, max_tokens=0).json
    assert len(client.engine.requests) == before
    assert answer["choices"][0]["text"] == "AB" and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_text_stops_before_the_stop_text(client, stream):
    client.writes("one\n\ntwo")
    answer = client.complete("x", stop=["\n\n"], max_tokens=50, stream=stream)
    choices = [event["choices"][0] for event in answer.events] if stream else answer.json["choices"]
    assert "".join(choice["text"] for choice in choices) == "one"
    assert choices[-1]["finish_reason"] == "stop"


def test_calls_and_control_tokens_are_no_messages_here(client):
    client.writes(["[f()]", "<|python_start|>", "x", "<|eot|>"])
    choice = client.complete("x", max_tokens=50).json["choices"][0]
    assert choice["text"] == "[f()]x" and choice["finish_reason"] == "stop"


def test_sixteen_tokens_are_the_default(client):
    client.writes("x" * 100)
    answer = client.complete("x").json
    assert answer["choices"][0]["text"] == "x" * 16 and answer["choices"][0]["finish_reason"] == "length"


def test_many_prompts_do_not_fill_the_queue(client):
    client.writes("ok")
    answer = client.complete([[65, i] for i in range(1, 201)])
    assert answer.status == 200 and len(answer.json["choices"]) == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [[1], "x"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "stream": True}, "echo"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client, fields, param):
    answer = client.complete(**({"prompt": "x"} | fields))
    assert answer.status == 400 and answer.error["param"].startswith(param), answer.json


def test_tokenize_and_back(client):
    tokenizer = client.engine.tokenizer
    bos = tokenizer.bos_id
    assert client.post("/tokenize", {"prompt": "Hi"}).json["tokens"] == [bos, 72, 105]
    assert client.post("/tokenize", {"prompt": "Hi", "add_special_tokens": False}).json["tokens"] == [72, 105]
    info = client.get("/tokenizer_info").json
    assert client.post("/tokenize", {"prompt": info["eos_token"]}).json["tokens"] == [tokenizer.eos_id]
    inside = client.post("/tokenize", {"prompt": f" {info['eos_token']}", "add_special_tokens": False}).json["tokens"]
    assert tokenizer.eos_id not in inside
    assert client.post("/detokenize", {"tokens": inside}).json["prompt"] == f" {info['eos_token']}"
    chat = client.post("/tokenize", {"messages": [{"role": "user", "content": "Hello"}]}).json["tokens"]
    client.chat()
    assert chat == prompts(client)[0]
    assert client.post("/tokenize", {"prompt": "x", "messages": []}).status == 400

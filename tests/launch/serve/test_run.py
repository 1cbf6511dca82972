"""The server over the real engine: scores, many clients, and the verb itself."""

import concurrent.futures
import http.client
import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from maverick_jax.inference.engine import EngineSettings, OneAtATime, SlotEngine
from maverick_jax.pretrained import load_pretrained
from maverick_jax.text import load_tokenizer
from tests.helpers.folders import bytes_model
from tests.helpers.serving import KEY, MODEL, PATIENCE, serving

CONTEXT = 96
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bytes_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def client(folder, model):
    engine = SlotEngine(model, load_tokenizer(folder), EngineSettings(slots=8, context=CONTEXT))
    with serving(engine, images=None, begin_prompts=True) as made:
        yield made


def test_scores_over_http_are_those_of_the_forward_pass(client, folder, model):
    """As lm-evaluation-harness asks for them, with one token that begins the text in each scored sequence."""
    draw, slow = np.random.default_rng(0), OneAtATime(model, load_tokenizer(folder), CONTEXT)
    bos = load_tokenizer(folder).bos_id
    prompts = [draw.integers(0, 256, draw.integers(2, 60)).tolist() for _ in range(200)]
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client.complete(prompts, **body).json
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        found, wanted = choice["logprobs"], slow.score([[bos, *prompt]], 1)[0]
        assert choice["prompt_begins"] == "added" and len(found["token_logprobs"]) == len(prompt) + 1
        np.testing.assert_allclose(found["token_logprobs"][:-1], [score.log_prob for score in wanted], atol=1e-5)
        greedy = [s == max(t.values()) for s, t in zip(found["token_logprobs"], found["top_logprobs"], strict=True)]
        assert greedy[:-1] == [score.token == score.top[0][0] for score in wanted]


def test_answers_of_the_real_engine_to_fifty_clients_are_those_of_each_alone(client):
    def one(number: int) -> list[str]:
        body = {
            "seed": number,
            "max_tokens": 4 + number % 13,
            "temperature": (0, 0.7, 1)[number % 3],
            "n": 1 + number % 2,
        }
        answer = client.chat(f"{number}", **body)
        while answer.status == 429:
            answer = client.chat(f"{number}", **body)
        return [choice["message"]["content"] for choice in answer.json["choices"]]

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        together = list(pool.map(one, range(500)))
    assert together == [one(number) for number in range(500)]
    status = client.engine.status()
    assert (status.active, status.queued, status.compilations) == (0, 0, 0)


def test_a_required_form_binds_the_real_engine(client):
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = client.chat("Hi", response_format=form, n=4, seed=1).json
    assert {choice["message"]["content"] for choice in answer["choices"]} <= {'{"a": "x"}', '{"a": "y"}'}


def test_the_verb_serves_until_it_is_interrupted(folder, tmp_path):
    key_file = tmp_path / "key"
    command = [sys.executable, "-m", "launch.cli", "serve", str(folder), "--name", MODEL, "--port", "0", "--slots", "2",
               "--context", "64", "--key-file", str(key_file)]  # fmt: skip
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    said: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                break
        else:
            raise AssertionError("".join(said))
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=PATIENCE)
        key = key_file.read_text().strip()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        assert answer.status == 200 and MODEL in answer.read().decode()
        connection.close()
        process.send_signal(signal.SIGINT)
        out, rest = process.communicate(timeout=PATIENCE)
        ended = (0, 130) if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else (130,)  # as under nohup
        assert process.returncode in ended and key not in out + rest + "".join(said) and "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


@pytest.mark.filterwarnings("ignore")
def test_the_harness_over_http_scores_as_it_does_in_process(client, folder, monkeypatch):
    """1,000 requests of lm-evaluation-harness's own client, with the server's tokenizer, on one engine."""
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    pytest.importorskip("tenacity", reason="the harness's client of servers needs its extra `api`")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from tests.train.evaluation.harness.test_adapter import instances, texts
    from train.evaluation.harness.adapter import EngineModel

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    address = {"base_url": f"{client.url}/v1/completions", "model": MODEL, "auth_token": KEY}
    options = {"tokenizer_backend": "remote", "batch_size": 8, "max_length": CONTEXT, "max_retries": 1}
    theirs = LocalCompletionsAPI(**address, **options, header={"Authorization": f"Bearer {KEY}"})
    ours, draw = EngineModel(client.engine, load_tokenizer(folder)), random.Random(0)
    pairs = [(texts(draw, 0, 8), " " + texts(draw, 1, 3)) for _ in range(700)]
    asked = instances("loglikelihood", *pairs)
    for a, b, pair in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), pairs, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-5) and a[1] == b[1], pair
    documents = instances("loglikelihood_rolling", *[(texts(draw, 1, 9),) for _ in range(100)])
    assert ours.loglikelihood_rolling(documents) == pytest.approx(theirs.loglikelihood_rolling(documents), abs=1e-5)
    settings = {"until": ["\n", "th"], "max_gen_toks": 12, "do_sample": False}
    prompts = instances("generate_until", *[(texts(draw, 1, 9), dict(settings)) for _ in range(200)])
    assert ours.generate_until(prompts) == theirs.generate_until(prompts)

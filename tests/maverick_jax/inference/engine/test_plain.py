"""The plain engine: its answers and scores are those of the slow twin."""

import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import Finish, GenerationRequest
from maverick_jax.inference.engine.one_at_a_time import OneAtATime
from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.inference.sampling import Sampling
from maverick_jax.model.transformer import Maverick
from maverick_jax.text import load_tokenizer
from tests.helpers import tiny
from tests.helpers.folders import mesh_of_8

BYTES = load_tokenizer("bytes")
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model():
    return Maverick.init(tiny.model_config(vocab_size=288, num_hidden_layers=2, no_rope_layer_interval=2))


@pytest.fixture
def engine(model):
    return PlainEngine(model, BYTES, context=48)


def prompt(text: str) -> list[int]:
    return [BYTES.bos_id, *BYTES.encode(text)]


def test_answers_equal_those_of_the_twin_and_run_together(engine, model):
    drawn = Sampling(1.3, top_k=40, min_p=0.01, frequency_penalty=0.5)
    asked = [
        GenerationRequest(prompt("abc"), 5, GREEDY, log_probs=2),
        GenerationRequest(prompt("a"), 5, drawn, seed=7),
        GenerationRequest(prompt("xyz 1"), 3, GREEDY),
    ]
    generations = [engine.submit(request)[0] for request in asked]
    assert engine.status().queued == 3 and engine.status().generated_tokens == 0
    found = [generation.result() for generation in reversed(generations)][::-1]
    twin = OneAtATime(model, BYTES, context=48)
    expected = [twin.submit(request)[0].result() for request in asked]
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    scores = [[score.log_prob for score in one.scores] for one in (found[0], expected[0])]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and len(scores[0]) == 5
    assert {one.finish for one in found} == {Finish.LENGTH} and engine.status().queued == 0
    assert engine.status().generated_tokens == 13


def test_answers_end_at_stop_ids_and_stop_texts(engine):
    (whole,) = engine.submit(GenerationRequest(prompt("abc"), 6, GREEDY))
    tokens = whole.result().tokens
    (stopped,) = engine.submit(GenerationRequest(prompt("abc"), 6, GREEDY, stop_ids=frozenset(tokens[1:2])))
    first = tokens.index(tokens[1])
    assert (stopped.result().tokens, stopped.result().finish) == (tokens[: first + 1], Finish.STOP)
    text = BYTES.decode(tokens[:1])
    if "\ufffd" not in text:
        (by_text,) = engine.submit(GenerationRequest(prompt("abc"), 6, GREEDY, stop_texts=(text,)))
        assert by_text.result().tokens == tokens[:1]


def test_scores_equal_those_of_the_twin(engine, model):
    sequences = [prompt("hello"), prompt("a longer text of words"), [1]]
    ours, theirs = engine.score(sequences, top=2), OneAtATime(model, BYTES, context=48).score(sequences, top=2)
    for a, b in zip(ours, theirs, strict=True):
        assert [one.token for one in a] == [one.token for one in b]
        assert [one.log_prob for one in a] == pytest.approx([one.log_prob for one in b], abs=1e-5)
        assert [[i for i, _ in one.top] for one in a] == [[i for i, _ in one.top] for one in b]


def test_a_mesh_gives_the_same(engine, model):
    split = PlainEngine(Maverick.init(model.config, mesh=mesh_of_8()), BYTES, 48)
    one, eight = (e.score([prompt("hello")])[0] for e in (engine, split))
    assert [s.log_prob for s in one] == pytest.approx([s.log_prob for s in eight], abs=1e-4)
    asked = GenerationRequest(prompt("abc"), 4, GREEDY)
    assert split.submit(asked)[0].result().tokens == engine.submit(asked)[0].result().tokens


def test_requests_that_it_cannot_run_are_refused(engine):
    for request, problem in [
        (GenerationRequest([], 1), "no tokens"), (GenerationRequest([1] * 48, 1), "at most 48, the context"),
        (GenerationRequest([1], 1, session="mine"), "session: the plain engine"),
        (GenerationRequest([1], 1, GREEDY, tiles=np.zeros((1, 3, 28, 28), np.uint8)), "has no image encoder"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=problem):
            engine.submit(request)
    with pytest.raises(InputError, match="49 tokens; expected at most 48"):
        engine.score([[1] * 49])
    engine.submit(GenerationRequest([1], 1, GREEDY))[0].cancel()
    engine.close()
    assert engine.status().queued == 0

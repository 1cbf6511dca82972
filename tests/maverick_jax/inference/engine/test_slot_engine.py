"""The engine gives each request what the slow twin gives it alone, whatever else it does meanwhile."""

import dataclasses
import threading

import numpy as np
import pytest

from maverick_jax.errors import InputError, QueueFull
from maverick_jax.inference.engine import EngineSettings, Finish, GenerationRequest, OneAtATime, SlotEngine, TokenFilter
from maverick_jax.inference.sampling import Sampling
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.parity.oracle import our_model, random_parameters, shapes, variant

CONFIG = variant(vocab_size=271, num_hidden_layers=2, no_rope_layer_interval=2)
"""The vocabulary of the byte tokenizer; chunks of 8 positions."""
SETTINGS = EngineSettings(slots=4, context=64, steps=3, queue=10, keep_bytes=0)


def assert_close(found, expected):
    """Weights of these models make logits of about 5, and rounding errors of some 1e-6 of them."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    return our_model(CONFIG, random_parameters(shapes(CONFIG)))


@pytest.fixture(scope="module")
def engine(model):
    with SlotEngine(model, ByteTokenizer(), SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def slow(model):
    return OneAtATime(model, ByteTokenizer(), context=64)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng((length, seed)).integers(0, 256, length).tolist()


MIXED = Sampling(0.8, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2, presence_penalty=0.4,
                 frequency_penalty=0.3, logit_bias={7: 2.5, 11: -100.0})  # fmt: skip
REQUESTS = [
    GenerationRequest(prompt_of(5), 9, Sampling(0.0), log_probs=3),
    GenerationRequest(prompt_of(8), 12, Sampling(1.0), seed=3),
    GenerationRequest(prompt_of(27), 20, MIXED, seed=4, log_probs=0),
    GenerationRequest(prompt_of(1), 7, Sampling(1.3, top_k=5), seed=5),
    GenerationRequest(prompt_of(40), 24, Sampling(0.7, top_p=0.5), seed=2**40 + 6, log_probs=20),
    GenerationRequest(prompt_of(16), 1, Sampling(1.0, min_p=0.2), seed=7),
    GenerationRequest(prompt_of(9), 0),
    GenerationRequest(prompt_of(3), 30, MIXED, seed=-1, stop_ids=frozenset(range(16))),
]


def test_each_request_gets_what_the_slow_twin_gives_it(engine, slow):
    running = [engine.submit(request)[0] for request in REQUESTS]
    for request, generation in zip(REQUESTS, running, strict=True):
        expected, found = slow.submit(request)[0].result(), generation.result()
        assert (found.tokens, found.finish, found.cached_tokens) == (expected.tokens, expected.finish, 0)
        assert [s.token for s in found.scores] == [s.token for s in expected.scores]
        for one, other in zip(found.scores, expected.scores, strict=True):
            assert_close(one.log_prob, other.log_prob)
            assert [i for i, _ in one.top] == [i for i, _ in other.top]
            assert_close([x for _, x in one.top], [x for _, x in other.top])
    assert engine.status().compilations == 0


def random_requests(count: int, seed: int, longest: int = 40) -> list[GenerationRequest]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        sampling = Sampling(
            temperature=float(rng.choice([0.0, 0.7, 1.0, 1.5])),
            top_k=int(rng.choice([0, 0, 5, 50])),
            top_p=float(rng.choice([1.0, 0.9, 0.4])),
            min_p=float(rng.choice([0.0, 0.0, 0.05])),
            repetition_penalty=float(rng.choice([1.0, 1.0, 1.3])),
            presence_penalty=float(rng.choice([0.0, 0.5])),
            frequency_penalty=float(rng.choice([0.0, -0.2])),
        )
        stops = frozenset(rng.integers(0, 271, 4).tolist()) if rng.random() < 0.5 else frozenset()
        prompt = rng.integers(0, 271, rng.integers(1, longest)).tolist()
        found.append(
            GenerationRequest(prompt, int(rng.integers(1, 20)), sampling, i, stops, log_probs=int(i % 3) or None)
        )
    return found


@pytest.fixture(scope="module")
def eight(model):
    with SlotEngine(model, None, EngineSettings(slots=8, context=64, steps=4, keep_bytes=0)) as engine:
        yield engine


def test_64_requests_on_8_slots_get_the_tokens_of_each_alone(eight):
    """Of mixed length, arrival and sampling."""
    requests = random_requests(64, seed=1)
    alone = [eight.submit(request)[0].result() for request in requests]
    running = []
    for i, request in enumerate(requests):
        running.append(eight.submit(request)[0])
        if i % 5 == 0:
            running[i // 2].result()  # those that come later meet others under way
    together = [generation.result() for generation in running]
    assert [(u.tokens, u.finish) for u in together] == [(u.tokens, u.finish) for u in alone]
    assert len({u.tokens for u in together}) > 60
    assert eight.status().compilations == 0


def test_n_answers_of_a_prompt_have_seeds_of_their_own(engine):
    request = GenerationRequest(prompt_of(9), 8, Sampling(1.0), seed=5)
    before = engine.status().prompt_tokens
    many = [g.result().tokens for g in engine.submit(request, n=6)]
    single = [engine.submit(dataclasses.replace(request, seed=5 + i))[0].result().tokens for i in range(6)]
    assert many == single and len(set(many)) == 6
    assert engine.status().prompt_tokens - before == 9 + 6 * 9  # one prompt of six answers, and six prompts


def test_scores_of_given_tokens_equal_the_slow_twin(engine, slow):
    sequences = [prompt_of(n, seed=1) for n in (2, 8, 9, 33, 64, 1)]
    for top in (0, 4):
        for found, expected in zip(engine.score(sequences, top), slow.score(sequences, top), strict=True):
            assert [s.token for s in found] == [s.token for s in expected]
            assert_close([s.log_prob for s in found], [s.log_prob for s in expected])
            assert [[i for i, _ in s.top] for s in found] == [[i for i, _ in s.top] for s in expected]
    assert engine.status().compilations == 0


def test_scores_of_written_tokens_equal_those_of_the_whole_text(engine):
    update = engine.submit(GenerationRequest(prompt_of(11), 20, Sampling(1.0), log_probs=1))[0].result()
    (scores,) = engine.score([[*prompt_of(11), *update.tokens]], top=1)
    for one, other in zip(update.scores, scores[10:], strict=True):
        assert one.token == other.token
        assert_close(one.log_prob, other.log_prob)
        assert one.top[0][0] == other.top[0][0]


class Only(TokenFilter):
    """Allows two tokens that depend on the length."""

    def mask(self, written):
        allowed = np.zeros(271, bool)
        allowed[[len(written), 100 + len(written)]] = True
        return None if len(written) == 3 else allowed


def test_a_filter_restricts_each_token_of_its_request_alone(engine, slow):
    request = GenerationRequest(prompt_of(5), 9, Sampling(1.0, logit_bias={4: 3.0}), allowed=Only())
    free = GenerationRequest(prompt_of(5), 9, Sampling(1.0), seed=1)
    running = [engine.submit(r)[0] for r in (request, free)]
    found = [g.result().tokens for g in running]
    assert found == [slow.submit(r)[0].result().tokens for r in (request, free)]
    assert all(token in (i, 100 + i) for i, token in enumerate(found[0]) if i != 3)


class Broken(TokenFilter):
    def mask(self, written):
        if len(written) == 2:
            raise KeyError("no such state")
        return


class Nothing(TokenFilter):
    def mask(self, written):
        return np.zeros(271, bool)


def test_a_filter_that_fails_ends_its_request_alone(engine):
    broken, nothing, other = (
        engine.submit(GenerationRequest(prompt_of(5), 9, allowed=allowed))[0] for allowed in (Broken(), Nothing(), None)
    )
    with pytest.raises(KeyError):
        broken.result()
    with pytest.raises(InputError, match="allows no token"):
        nothing.result()
    assert len(other.result().tokens) == 9
    assert engine.status().active == 0


def test_a_stop_text_ends_the_answer_with_the_token_that_completes_it(engine, slow):
    free = engine.submit(GenerationRequest(prompt_of(6), 30, Sampling(1.0)))[0].result()
    text = ByteTokenizer().decode(free.tokens[:20])
    stop = next(text[i : i + 2] for i in range(6, 20) if text[i : i + 2].isascii() and len(text[i : i + 2]) == 2)
    request = GenerationRequest(prompt_of(6), 30, Sampling(1.0), stop_texts=("never", stop))
    found = engine.submit(request)[0].result()
    assert found.finish == Finish.STOP and found.tokens == slow.submit(request)[0].result().tokens
    assert stop in ByteTokenizer().decode(found.tokens) and len(found.tokens) < 30
    assert found.tokens == free.tokens[: len(found.tokens)]


class Gate(TokenFilter):
    """Lets an answer go on after `open` is set, and says when it has begun."""

    def __init__(self):
        self.begun, self.open = threading.Event(), threading.Event()

    def mask(self, written):
        if len(written) == 1:
            self.begun.set()
            assert self.open.wait(600)
        return


def test_cancelled_requests_free_their_slots_and_others_go_on(engine):
    gate = Gate()
    first = engine.submit(GenerationRequest(prompt_of(3), 40, allowed=gate))[0]
    assert gate.begun.wait(600)
    many = engine.submit(GenerationRequest(prompt_of(4), 50, Sampling(1.0)), n=8)
    before = engine.status()
    for generation in [first, *many[1:]]:
        generation.cancel()
    gate.open.set()
    updates = [g.result() for g in [first, *many]]
    assert [u.finish for u in updates] == [Finish.CANCELLED, Finish.LENGTH] + [Finish.CANCELLED] * 7
    assert len(updates[0].tokens) == 2  # the step that was under way
    assert len(updates[1].tokens) == 50 and not any(u.tokens for u in updates[2:])
    assert (before.active, before.queued) == (1, 8)
    assert (engine.status().active, engine.status().queued) == (0, 0)


def test_a_full_queue_refuses_more(engine):
    gate = Gate()
    request = GenerationRequest([1], 5)
    running = engine.submit(dataclasses.replace(request, allowed=gate))
    assert gate.begun.wait(600)
    running += engine.submit(request, n=9)
    with pytest.raises(QueueFull, match="9 generations wait, and the queue holds 10"):
        engine.submit(request, n=2)
    gate.open.set()
    assert [len(g.result().tokens) for g in running] == [5] * 10


def test_a_newcomer_waits_for_one_piece_of_a_longer_prompt_at_most(eight):
    """Its tokens come while the long prompt has pieces left."""
    gate = Gate()
    holder = eight.submit(GenerationRequest([5], 3, allowed=gate))[0]
    assert gate.begun.wait(600)
    long = eight.submit(GenerationRequest(prompt_of(60), 1))[0]
    short = eight.submit(GenerationRequest(prompt_of(3), 1))[0]
    order = []
    waiters = [threading.Thread(target=lambda g=g, name=name: (g.result(), order.append(name)))
               for g, name in ((long, "long"), (short, "short"))]  # fmt: skip
    for waiter in waiters:
        waiter.start()
    gate.open.set()
    for waiter in waiters:
        waiter.join()
    assert order[0] == "short"
    holder.result()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": []}, "prompt: no tokens"),
        ({"prompt": [271]}, "prompt: ids 271 to 271; expected 0 to 270"),
        ({"prompt": [0.5]}, "expected a list of token ids"),
        ({"max_tokens": 64}, "are 65; expected at most 64"),
        ({"max_tokens": -1}, "max_tokens: -1"),
        ({"stop_ids": frozenset({999})}, "stop_ids: id 999"),
        ({"stop_texts": ("",)}, "stop_texts: one is empty"),
        ({"log_probs": 21}, "log_probs: 21; expected 0 to 20"),
        ({"sampling": Sampling(logit_bias={-1: 1.0})}, "logit_bias: id -1"),
    ],
)
def test_requests_that_can_never_run_are_refused(engine, slow, changes, said):
    request = dataclasses.replace(GenerationRequest([1], 1), **changes)
    for any_engine in (engine, slow):
        with pytest.raises(InputError, match=said):
            any_engine.submit(request)


@pytest.mark.parametrize(
    "changes",
    [
        {"local_attention": "sliding_window", "num_hidden_layers": 2, "no_rope_layer_interval": 2},
        pytest.param({"attention_chunk_size": None}, marks=pytest.mark.slow),
        pytest.param({"no_rope_layer_interval": 0}, marks=pytest.mark.slow),
        pytest.param({"attention_chunk_size": 24, "num_local_experts": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_attention_spans_too(changes):
    config = variant(**({"num_hidden_layers": 4} | changes))
    other = our_model(config, random_parameters(shapes(config)))
    slow = OneAtATime(other, context=96)
    requests = [GenerationRequest([t % 96 for t in prompt_of(n)], 30, Sampling(1.0), log_probs=0) for n in (3, 23, 60)]
    with SlotEngine(other, None, EngineSettings(slots=2, context=96, steps=2, piece=16, lazy=True)) as engine:
        for generation, request in zip([engine.submit(r)[0] for r in requests], requests, strict=True):
            found, expected = generation.result(), slow.submit(request)[0].result()
            assert found.tokens == expected.tokens
            assert_close([s.log_prob for s in found.scores], [s.log_prob for s in expected.scores])
        last = engine.submit(dataclasses.replace(requests[0], max_tokens=90))[0]
    assert last.result().finish == Finish.CANCELLED  # the engine ended first
    with pytest.raises(InputError, match="closed"):
        engine.submit(requests[0])


def test_other_weights_take_the_place_of_its_own(model, engine):
    """No program is compiled for them."""
    other = our_model(CONFIG, random_parameters(shapes(CONFIG), seed=1))
    small = variant(vocab_size=271, num_hidden_layers=2)
    asked = GenerationRequest(prompt_of(20), 8, Sampling(1.0), seed=3)
    own, expected = (OneAtATime(m, ByteTokenizer(), context=64).submit(asked)[0].result() for m in (model, other))
    try:
        engine.load(other)
        assert engine.submit(asked)[0].result().tokens == expected.tokens != own.tokens
        running = engine.submit(GenerationRequest(prompt_of(5), 50), 8)  # more than a moment's work
        with pytest.raises(InputError, match="requests are under way"):
            engine.load(model)
        for one in running:
            one.result()
        with pytest.raises(InputError, match="another model"):
            engine.load(our_model(small, random_parameters(shapes(small))))
        assert engine.status().compilations == 0
    finally:
        engine.load(model)
    assert engine.submit(asked)[0].result().tokens == own.tokens

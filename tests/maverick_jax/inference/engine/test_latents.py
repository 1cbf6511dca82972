"""Prompts with latent thoughts: the cached form, latent after latent, equals the Jacobi passes of a whole text."""

import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, OneAtATime, SlotEngine
from maverick_jax.inference.engine.latents import end_of_piece
from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.inference.sampling import Sampling
from maverick_jax.text import load_tokenizer
from tests.parity.oracle import our_model, random_parameters, shapes, variant

TOKENIZER = load_tokenizer("bytes_thinking")
LATENT = TOKENIZER.controls["<|reasoning_reserved_special_token_0|>"]
CONFIG = variant(
    vocab_size=274, num_hidden_layers=2, no_rope_layer_interval=2, latent={"token_id": LATENT, "passes": 4}
)
"""Chunks of 8 positions."""
SETTINGS = EngineSettings(slots=2, context=64, piece=8, steps=2, queue=10, keep_bytes=1 << 20, lazy=True)
GREEDY = Sampling(0.0)


@pytest.fixture(scope="module")
def model():
    return our_model(CONFIG, random_parameters(shapes(CONFIG)))


@pytest.fixture(scope="module")
def engine(model):
    with SlotEngine(model, TOKENIZER, SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def slow(model):
    return OneAtATime(model, TOKENIZER, context=64)


def request_of(before: int, latents: int, after: int = 1, seed: int = 0, **more) -> GenerationRequest:
    text = np.random.default_rng((before, seed)).integers(0, 256, before + after).tolist()
    return GenerationRequest([*text[:before], *[LATENT] * latents, *text[before:]], 6, GREEDY, log_probs=3, **more)


@pytest.mark.parametrize(("before", "latents"), [(5, 3), (7, 4), (8, 1)])
def test_a_prompt_with_latents_is_answered_as_by_the_slow_twin(before, latents, engine, slow):
    """Latents lie inside a chunk of local attention, across a border and after one."""
    request = request_of(before, latents)
    found, expected = engine.submit(request)[0].result(), slow.submit(request)[0].result()
    assert found.tokens == expected.tokens
    for one, other in zip(found.scores, expected.scores, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-5)


def test_latents_are_not_pauses(model, engine):
    """Without the feedback's value the answer is another: the test above compares what depends on it."""
    paused = OneAtATime(our_model(CONFIG.model_copy(update={"latent": None}), {
        name: x for name, x in random_parameters(shapes(CONFIG)).items() if not name.startswith("latent/")
    }), TOKENIZER, context=64)  # fmt: skip
    request = request_of(5, 3)
    one, other = engine.submit(request)[0].result().scores[0], paused.submit(request)[0].result().scores[0]
    assert dict(one.top) != pytest.approx(dict(other.top), abs=1e-2)


@pytest.mark.parametrize(("kept", "cached"), [(3, 3), (4, 4), (5, 3), (6, 3), (7, 3)])
def test_a_kept_text_that_ends_before_or_among_latents_is_gone_on_from_rightly(kept, cached, engine, slow):
    """The hidden state before a latent is not kept, so it is computed again."""
    request = request_of(5, 3, seed=kept)
    first = GenerationRequest(request.prompt[:kept], 0, GREEDY)
    engine.submit(first)[0].result()
    found, expected = engine.submit(request)[0].result(), slow.submit(request)[0].result()
    assert found.cached_tokens == cached
    np.testing.assert_allclose(found.scores[0].log_prob, expected.scores[0].log_prob, atol=1e-5)


def test_several_answers_share_a_prompt_with_latents(engine, slow):
    request = request_of(6, 2, seed=9)
    expected = slow.submit(request)[0].result().tokens
    assert [generation.result().tokens for generation in engine.submit(request, 2)] == [expected] * 2


def test_no_answer_holds_the_token_of_a_latent(engine, slow):
    request = GenerationRequest([1, 2, 3], 4, Sampling(0.0, logit_bias={LATENT: 1000.0}))
    for asked in (engine, slow):
        assert LATENT not in asked.submit(request)[0].result().tokens


def test_what_computes_no_latents_refuses_them(model, engine):
    plain = PlainEngine(model, TOKENIZER, context=64)
    with pytest.raises(InputError, match="prompt: the plain engine computes no latent thoughts, which token 273"):
        plain.submit(request_of(5, 1))
    with pytest.raises(InputError, match="sequence 0: an engine that scores computes no latent thoughts"):
        engine.score([[1, LATENT, 2]])


def test_pieces_end_at_latents():
    tokens = np.array([1, 2, LATENT, LATENT, 3])
    assert [end_of_piece(tokens, start, 5, LATENT) for start in range(5)] == [2, 2, 3, 4, 5]


def test_a_latent_is_computed_alone(model):
    """In a program of one token, not of the shortest piece of a prompt; a model without latents has no such program."""
    with SlotEngine(model, TOKENIZER, SETTINGS) as engine:
        used, prefill = [], engine._device.prefill
        engine._device.prefill = lambda work: (
            used.append(engine._device._piece(work)[0].tokens.shape[1]),
            prefill(work),
        )
        engine.submit(request_of(5, 3))[0].result()
        assert used == [8, 1, 1, 1, 1] and engine._device.pieces == [8]

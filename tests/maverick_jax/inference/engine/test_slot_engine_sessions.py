"""Texts that go on from kept keys are those of the whole forward pass, and only new tokens are computed."""

import dataclasses

import numpy as np
import pytest

from maverick_jax.inference.engine import EngineSettings, GenerationRequest, OneAtATime, SlotEngine
from maverick_jax.inference.sampling import Sampling
from tests.parity.oracle import our_model, random_parameters, shapes, variant

CONFIG = variant(num_hidden_layers=2, no_rope_layer_interval=2)
SETTINGS = EngineSettings(slots=2, context=64, steps=2, keep_bytes=1 << 22)


@pytest.fixture(scope="module")
def model():
    return our_model(CONFIG, random_parameters(shapes(CONFIG)))


@pytest.fixture(scope="module")
def engine(model):
    with SlotEngine(model, None, SETTINGS) as engine:
        yield engine


@pytest.fixture(scope="module")
def slow(model):
    return OneAtATime(model, context=64)


def some(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 96, count).tolist()


def ask(engine, prompt: list[int], max_tokens: int, **options):
    return engine.submit(GenerationRequest(prompt, max_tokens, Sampling(1.0), log_probs=0, **options))[0].result()


def test_each_turn_of_a_session_computes_its_new_tokens_alone(engine, slow):
    """Across chunks, up to seven times the ring of eight positions."""
    text, turns = [], [(5, 4), (3, 9), (1, 2), (8, 8), (2, 3), (6, 5)]
    for turn, (asked, answered) in enumerate(turns):
        known, text = len(text), [*text, *some(asked, seed=turn)]
        before = engine.status()
        found = ask(engine, text, answered, session="one", seed=turn)
        expected = ask(slow, text, answered, seed=turn)
        assert found.tokens == expected.tokens and found.cached_tokens == known
        np.testing.assert_allclose(
            [s.log_prob for s in found.scores], [s.log_prob for s in expected.scores], rtol=1e-5, atol=1e-5
        )
        after = engine.status()
        assert after.prompt_tokens - before.prompt_tokens == asked
        assert after.cached_tokens - before.cached_tokens == known
        text += found.tokens
    assert len(text) == 56 and engine.status().compilations == 0


@pytest.mark.parametrize(
    ("shared", "reused"), [(3, 0), (8, 8), (13, 8), (31, 24), (32, 32), (34, 34), (38, 38), (40, 40)], ids=str
)
def test_a_common_beginning_is_reused_from_where_no_older_key_is_needed(engine, slow, shared, reused):
    """Of 40 kept tokens, the ring holds the last eight: 32 to 39. The whole text has its logits too."""
    realm = f"prefix {shared}"
    first = ask(engine, some(30, seed=1), 10, realm=realm)
    kept = [*some(30, seed=1), *first.tokens]
    prompt = kept[:shared] + [(t + 1) % 96 for t in kept[shared : shared + 1]] + some(9, seed=3)
    prompt = kept if shared == 40 else prompt
    found = ask(engine, prompt, 6, realm=realm)
    assert found.tokens == ask(slow, prompt, 6).tokens
    assert found.cached_tokens == reused
    assert ask(engine, prompt[:-1], 1, realm=f"not {realm}").cached_tokens == 0


def test_reuse_changes_no_tokens(model):
    """Requests that share beginnings, with and without kept texts."""
    rng, requests = np.random.default_rng(0), []
    for i in range(24):
        stem = some(30, seed=int(rng.integers(3)))[: rng.integers(1, 30)]
        requests.append(GenerationRequest([*stem, *some(int(rng.integers(1, 9)), seed=i)], 12, Sampling(1.0), seed=i))
    found = []
    for keep_bytes in (0, 200_000):
        with SlotEngine(model, None, dataclasses.replace(SETTINGS, keep_bytes=keep_bytes)) as engine:
            running = [engine.submit(request)[0] for request in requests]
            found.append([generation.result() for generation in running])
            status = engine.status()
            assert status.cache_bytes <= keep_bytes
    assert [u.tokens for u in found[0]] == [u.tokens for u in found[1]]
    assert sum(u.cached_tokens for u in found[0]) == 0 < sum(u.cached_tokens for u in found[1])

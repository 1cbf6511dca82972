"""Requests with pictures get what the slow twin gives them, and other pictures are other prompts."""

import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, OneAtATime, SlotEngine
from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.inference.sampling import Sampling
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.parity.oracle import MULTIMODAL, our_model, random_parameters, shapes


class FewTokens(ByteTokenizer):
    """A tokenizer that fits the model; nothing is decoded."""

    vocab_size = 96


CONFIG = MULTIMODAL["maverick_with_images"].model_copy(update={"num_hidden_layers": 2, "no_rope_layer_interval": 2})
PATCH = 95


def shown(seed: int, tiles: int, after: int = 5) -> dict:
    """A prompt of nine `<|patch|>` tokens for each tile among others; they cross chunks of eight."""
    rng = np.random.default_rng(seed)
    words = lambda count: rng.integers(0, 90, count).tolist()
    prompt = [t for _ in range(tiles) for t in [*words(2), 93, *[PATCH] * 9, 94]] + words(after)
    return {"prompt": prompt, "tiles": rng.integers(0, 256, (tiles, 3, 24, 24)).astype(np.uint8)}


@pytest.fixture(scope="module")
def model():
    return our_model(CONFIG, random_parameters(shapes(CONFIG)))


@pytest.fixture(scope="module")
def engine(model):
    with SlotEngine(model, None, EngineSettings(slots=2, context=64, steps=2)) as engine:
        yield engine


def test_pictures_are_seen_beside_requests_without_any(engine, model):
    slow = OneAtATime(model, context=64)
    requests = [
        GenerationRequest(**shown(1, 3), max_tokens=8, sampling=Sampling(1.0)),
        GenerationRequest([1, 2, 3], 20, Sampling(1.0)),
        GenerationRequest(**shown(2, 1), max_tokens=8, sampling=Sampling(0.0)),
    ]
    running = [engine.submit(request)[0] for request in requests]
    expected = [slow.submit(request)[0].result().tokens for request in requests]
    assert [g.result().tokens for g in running] == expected
    assert engine.status().compilations == 0
    plain = PlainEngine(model, FewTokens(), context=64)
    assert [g.result().tokens for g in [plain.submit(request)[0] for request in requests]] == expected


def test_a_kept_text_is_reused_for_the_same_pictures_alone(engine):
    first, other = shown(3, 2), shown(3, 2)
    other["tiles"] = 255 - other["tiles"]
    ask = lambda request: engine.submit(GenerationRequest(**request, max_tokens=3, realm="pictures"))[0].result()
    one, again, changed = ask(first), ask(first), ask(other)
    assert one.cached_tokens == 0 and again.cached_tokens > 16 and again.tokens == one.tokens
    assert changed.cached_tokens == 0  # they differ from the third token on


def test_pictures_that_do_not_match_are_refused(engine):
    request = shown(1, 2)
    for changes, said in (
        ({"tiles": request["tiles"][:1]}, "the prompt has 18 ids 95 .*; expected 9"),
        ({"tiles": request["tiles"][..., :20]}, r"expected uint8 of \(tiles, 3, 24, 24\)"),
        ({"prompt": [1]}, "the prompt has 0 ids"),
    ):
        with pytest.raises(InputError, match=said):
            engine.submit(GenerationRequest(**(request | changes), max_tokens=1))

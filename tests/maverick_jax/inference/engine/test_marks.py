"""Engines of a model with reasoning heads and repeated periods write what their slow twin writes."""

import functools

import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.inference.engine import GenerationRequest
from maverick_jax.inference.engine.marks import counted
from maverick_jax.inference.engine.one_at_a_time import OneAtATime
from maverick_jax.inference.engine.plain import PlainEngine
from maverick_jax.inference.engine.slot_engine import EngineSettings, SlotEngine
from maverick_jax.model.transformer import Maverick
from maverick_jax.reasoning import Loops, ReasoningHeads
from maverick_jax.text.tokenizers.byte_level import ByteTokenizer
from tests.helpers import tiny

CONTEXT = 48


@functools.cache
def model() -> Maverick:
    """Three periods of one local layer, with heads that add something; the second runs twice."""
    config = tiny.model_config(
        vocab_size=300, num_hidden_layers=3, no_rope_layer_interval=0, num_local_experts=0, interleave_moe_layer_step=1,
        reasoning_heads=ReasoningHeads(schema_heads=2, schema_tokens=12), loops=Loops(periods=(1, 2), times=2),
    )  # fmt: skip
    fresh, rng = tiny.model_of(config, 0), np.random.default_rng(0)
    new = lambda name, x: rng.normal(size=x.shape).astype(np.float32) if name.endswith("schema/o") else x
    leaves = {name: new(name, x) for name, x in names.flatten(fresh).items()}
    leaves["loop_gain"] = rng.normal(size=32).astype(np.float32) * 0.3
    return names.unflatten(fresh, leaves)


def request(seed: int, length: int, **changes) -> GenerationRequest:
    rng = np.random.default_rng(seed)
    marks = (rng.random(length) < 0.3).astype(np.uint8)
    return GenerationRequest(rng.integers(0, 256, length).tolist(), 4, marks=marks, log_probs=2, **changes)


def answered(engine, requests) -> list:
    found = [engine.submit(one)[0] for one in requests]
    return [generation.result() for generation in found]


def check_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        scores = [[score.log_prob for score in update.scores] for update in (one, other)]
        np.testing.assert_allclose(*scores, atol=2e-5)


REQUESTS = [(0, 20), (1, 9), (2, 33)]


@functools.cache
def expected() -> list:
    return answered(OneAtATime(model(), context=CONTEXT), [request(*one) for one in REQUESTS])


def test_marks_change_what_is_written():
    unmarked = GenerationRequest(request(2, 33).prompt, 4, log_probs=2)
    (found,) = answered(OneAtATime(model(), context=CONTEXT), [unmarked])
    assert abs(found.scores[0].log_prob - expected()[2].scores[0].log_prob) > 1e-3


def test_the_plain_engine_writes_what_its_twin_writes():
    engine = PlainEngine(model(), ByteTokenizer(), context=CONTEXT)
    check_same(answered(engine, [request(*one) for one in REQUESTS]), expected())


def test_the_slot_engine_writes_what_its_twin_writes():
    """Also after a text that begins alike, with other marks, and in a session that goes on."""
    settings = EngineSettings(slots=2, context=CONTEXT, steps=2, lazy=True)
    with SlotEngine(model(), ByteTokenizer(), settings) as engine:
        check_same(answered(engine, [request(*one) for one in REQUESTS]), expected())
        again = request(2, 33)
        other = GenerationRequest(again.prompt, 4, marks=np.roll(again.marks, 5), log_probs=2)
        longer = GenerationRequest([*again.prompt, 7, 8], 4, marks=np.append(again.marks, [0, 1]).astype(np.uint8),
                                   log_probs=2)  # fmt: skip
        found = answered(engine, [again, other, longer])
        assert engine.status().cached_tokens > 0
    check_same(found, answered(OneAtATime(model(), context=CONTEXT), [again, other, longer]))


def test_a_prompt_with_more_marks_than_room_is_refused():
    engine = PlainEngine(model(), ByteTokenizer(), context=CONTEXT)
    with pytest.raises(InputError, match=r"marks: 20 tokens of the prompt are for schema heads; expected at most 12"):
        engine.submit(GenerationRequest([1] * 20, 1, marks=np.ones(20, np.uint8)))
    with pytest.raises(InputError, match=r"marks: uint8 of shape \(3,\); expected uint8 of \(20,\)"):
        engine.submit(GenerationRequest([1] * 20, 1, marks=np.ones(3, np.uint8)))


def test_marked_tokens_are_counted_up_to_a_position():
    assert counted(model().config, np.array([1, 0, 2, 1], np.uint8), 3).tolist() == [1]
    assert counted(model().config, np.array([1, 0, 2, 1], np.uint8), 9).tolist() == [2]

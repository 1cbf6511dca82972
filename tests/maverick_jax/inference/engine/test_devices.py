"""An engine on eight devices gives what it gives on one."""

import jax
import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, OneAtATime, SlotEngine
from maverick_jax.inference.engine.devices import buckets
from maverick_jax.inference.sampling import Sampling
from maverick_jax.sharding import make_mesh
from tests.parity.oracle import our_model, random_parameters, shapes, variant

CONFIG = variant(num_hidden_layers=2, no_rope_layer_interval=2)


def test_eight_devices_equal_one():
    """Experts and heads are split, and so are the slots."""
    parameters = random_parameters(shapes(CONFIG))
    requests = [
        GenerationRequest([i, *range(3 * i)], 14, Sampling(1.0 if i % 2 else 0.0, top_p=0.9), seed=i, log_probs=2)
        for i in range(10)
    ]
    slow = OneAtATime(our_model(CONFIG, parameters), context=64)
    expected = [slow.submit(request)[0].result() for request in requests]
    texts = [[*range(40)], [5, 6]]
    mesh = make_mesh({"expert": 4, "tensor": 2}, jax.devices()[:8])
    with SlotEngine(our_model(CONFIG, parameters, mesh), None, EngineSettings(slots=8, context=64, steps=2)) as engine:
        found = [generation.result() for generation in [engine.submit(request)[0] for request in requests]]
        scores = engine.score(texts, 1)
        assert engine.status().compilations == 0
    assert [u.tokens for u in found] == [u.tokens for u in expected]
    for one, other in zip(
        [u.scores for u in found] + scores, [u.scores for u in expected] + slow.score(texts, 1), strict=True
    ):
        np.testing.assert_allclose([s.log_prob for s in one], [s.log_prob for s in other], rtol=1e-5, atol=1e-5)


def test_slots_must_divide_among_the_devices():
    mesh = make_mesh({"expert": 4, "tensor": 2}, jax.devices()[:8])
    model = our_model(CONFIG, random_parameters(shapes(CONFIG)), mesh)
    with pytest.raises(InputError, match="slots: 6; expected a multiple of 4"):
        SlotEngine(model, None, EngineSettings(slots=6))


def test_lengths_are_rounded_up_to_few_sizes():
    assert buckets(32, 200) == [32, 64, 128, 200]
    assert buckets(32, 256) == [32, 64, 128, 256]
    assert buckets(8, 8) == [8] and buckets(256, 64) == [64]

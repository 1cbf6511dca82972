"""Compares the logits of our model with those of the public model (`transformers`, float32) and of the NumPy twin.

The tolerance is 1e-4 on logits of standard deviation 1.5, for float32 arithmetic in a different order. Every mistake in
docs/reference/testing.md changes logits by more.
"""

import numpy as np
import pytest

from tests.parity.llama4_numpy import Llama4
from tests.parity.oracle import MODELS, case, config_json, exported, random_tokens, torch_logits

TOLERANCE = 1e-4


@pytest.mark.oracles
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_public_model(name):
    c = case(name)
    tokens = random_tokens(c.config, batch=2, length=40)  # five chunks and five temperature steps
    theirs = torch_logits(c.torch, tokens)
    assert 1.0 < theirs.std() < 3.0, "the weights should make the network matter, and not saturate it"
    np.testing.assert_allclose(c.ours.logits(tokens), theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.oracles
@pytest.mark.parametrize("length", [1, 8, 9, 31])
@pytest.mark.parametrize("name", ["maverick", "scout"])
def test_logits_equal_at_lengths_around_chunk_borders(name, length):
    c = case(name)
    tokens = random_tokens(c.config, batch=2, length=length, seed=length)
    np.testing.assert_allclose(c.ours.logits(tokens), torch_logits(c.torch, tokens), atol=TOLERANCE, rtol=0)


@pytest.mark.oracles
@pytest.mark.parametrize("name", MODELS)
def test_twin_equals_the_public_model(name):
    """The twin uses float64, so the remaining difference is the public model's float32 rounding."""
    c = case(name)
    tokens = random_tokens(c.config, batch=1, length=40)
    np.testing.assert_allclose(c.twin().logits(tokens[0]), torch_logits(c.torch, tokens)[0], atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", ["maverick", "scout"])
def test_positions_far_into_a_document(name):
    """Rotary angles, chunks and temperature depend on positions. The public model cannot start inside a document."""
    c = case(name)
    tokens, positions = random_tokens(c.config, 1, 40), np.arange(10_003, 10_043, dtype=np.int32)[None]
    ours = c.ours.logits(tokens, positions=positions)[0]
    # our angles are float32, as the public model's are, and the twin's float64: at position 10,000 a float32 angle is
    # off by up to 5e-4, half a unit in its last place
    np.testing.assert_allclose(ours, c.twin().logits(tokens[0], positions[0]), atol=5 * TOLERANCE, rtol=0)


@pytest.mark.oracles
@pytest.mark.parametrize("name", ["maverick", "scout", "six_layers_top_2"])
def test_packed_documents_equal_the_public_model_on_each_alone(name):
    c = case(name)
    lengths, T = (13, 19, 5), 40  # no document starts on a chunk border; three positions are padding
    tokens = random_tokens(c.config, batch=1, length=T)
    segments, positions = np.zeros((1, T), np.int32), np.zeros((1, T), np.int32)
    starts = np.cumsum((0, *lengths))
    for i, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        segments[0, start : start + length] = i + 1
        positions[0, start : start + length] = np.arange(length)
    packed = np.asarray(c.ours.logits(tokens, positions=positions, segment_ids=segments))[0]
    derived = np.asarray(c.ours.logits(tokens, segment_ids=segments))[0]
    for start, length in zip(starts, lengths, strict=False):
        document = slice(start, start + length)
        alone = torch_logits(c.torch, tokens[:, document])[0]
        np.testing.assert_allclose(packed[document], alone, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(derived[document], alone, atol=TOLERANCE, rtol=0)


@pytest.mark.oracles
def test_bfloat16_follows_the_public_model_in_bfloat16():
    """Compares logits as a whole: rounding differs, and one flipped expert changes a token's logits by about 1."""
    from tests.parity.oracle import our_model, torch_model

    c = case("maverick")
    config = c.config.model_copy(
        update={"param_dtype": "bfloat16", "compute_dtype": "bfloat16", "router_dtype": "compute"}
    )
    tokens = random_tokens(config, batch=4, length=40)
    ours = np.asarray(our_model(config, c.parameters).logits(tokens))
    theirs = torch_logits(torch_model(config, c.parameters, "bfloat16"), tokens)
    exact = torch_logits(c.torch, tokens)
    assert np.mean(ours.argmax(-1) == theirs.argmax(-1)) > 0.93
    assert np.abs(ours - theirs).mean() < 0.08
    assert np.abs(ours - exact).mean() < 1.25 * np.abs(theirs - exact).mean(), "no less exact than the public model"


def test_oracle_twin_refuses_unknown_mutations():
    c = case("maverick")
    with pytest.raises(AssertionError):
        Llama4(config_json(c.config), exported(c.parameters), ["no_such_mistake"])

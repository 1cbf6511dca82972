"""The log-probabilities that an engine reports are those of the forward pass that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.config import ModelConfig
from maverick_jax.inference.engine import EngineSettings, GenerationRequest, SlotEngine
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.ops.cross_entropy import cross_entropy

TWO_LAYERS = {"num_hidden_layers": 2, "no_rope_layer_interval": 2, "hidden_size": 64, "num_local_experts": 4}


@pytest.mark.parametrize(
    ("dtype", "tolerance", "changes"),
    [
        ("float32", 1e-5, TWO_LAYERS),
        pytest.param("float32", 1e-5, {}, marks=pytest.mark.slow),
        pytest.param("bfloat16", 0.01, {}, marks=pytest.mark.slow),
    ],
)
def test_log_probabilities_are_those_of_the_training_forward_pass(dtype, tolerance, changes):
    """Of given and of written tokens, over two chunks. Found on `tiny`: 1e-6 in float32, 0.0016 in bfloat16."""
    config = ModelConfig.from_name("tiny", compute_dtype=dtype, attention_chunk_size=32, **changes)
    model = Maverick.init(config, seed=1)
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, 50).tolist()
    with SlotEngine(model, None, EngineSettings(slots=2, context=96, steps=1, lazy=True)) as engine:
        update = engine.submit(GenerationRequest(prompt, 14, log_probs=0))[0].result()
        text = [*prompt, *update.tokens]
        (scores,) = engine.score([text])

    @jax.jit
    def trained(model: Maverick, tokens: jax.Array) -> jax.Array:
        hidden, _ = model.hidden(Inputs(tokens[:, :-1]))
        ones = jnp.ones((1, tokens.shape[1] - 1), jnp.float32)
        return -cross_entropy(hidden, model.stored_output_weight(), tokens[:, 1:], ones, rules=model.rules).per_token

    with jax.set_mesh(model.embed[...].sharding.mesh):
        expected = np.asarray(trained(model, jnp.asarray([text], jnp.int32)))[0]
    np.testing.assert_allclose([s.log_prob for s in scores], expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose([s.log_prob for s in update.scores], expected[49:], rtol=0, atol=tolerance)

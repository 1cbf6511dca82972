"""Texts that begin together: logits and tokens equal the whole forward pass, across chunk borders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.errors import InputError
from maverick_jax.inference.engine import group
from maverick_jax.inference.engine.beginnings import beginning_of
from maverick_jax.inference.engine.forward import Scanned
from maverick_jax.inference.engine.programs import decode
from maverick_jax.inference.engine.requests import GenerationRequest
from maverick_jax.inference.sampling import Sampling
from tests.parity.oracle import MODELS, case, our_model, random_parameters, random_tokens, shapes, variant

SLIDING = variant(local_attention="sliding_window", num_hidden_layers=5)
LENGTHS, STEPS, CONTEXT = (1, 8, 21), 14, 40


def written(model):
    """Prompts of LENGTHS tokens, the greedy tokens after them [B, STEPS], and the state after those."""
    prompts = [random_tokens(model.config, batch=1, length=n, seed=n)[0] for n in LENGTHS]
    tokens = np.zeros((len(prompts), 32), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    requests = [GenerationRequest(prompt, STEPS + 1, Sampling(0.0)) for prompt in prompts]
    first = jax.tree.map(lambda *x: np.stack(x), *(beginning_of(r, 0, model.config.vocab_size) for r in requests))

    @jax.jit
    def program(model):
        slots = group.slots_of(first, model.config, model.rules)
        begun = group.begun(Scanned.of(model), jnp.asarray(tokens), jnp.array(LENGTHS), slots, CONTEXT)
        return decode(Scanned.of(model), *begun, STEPS)

    with jax.set_mesh(model.embed[...].sharding.mesh):
        cache, slots, steps = program(model)
    return prompts, np.asarray(steps.tokens).T, cache, slots


SLOW = [pytest.param(MODELS[name], marks=pytest.mark.slow) for name in ("scout", "unchunked", "rope_everywhere")]


@pytest.mark.parametrize("config", ["maverick", SLIDING, *SLOW])
def test_a_group_equals_the_whole_forward_pass(config):
    model = case(config).ours if isinstance(config, str) else our_model(config, random_parameters(shapes(config)))
    prompts, tokens, cache, slots = written(model)
    rows = np.zeros((len(prompts), CONTEXT), np.int32)
    for row, prompt, more in zip(rows, prompts, tokens, strict=True):
        row[: len(prompt) + STEPS] = [*prompt, *more]
    whole = np.asarray(model.logits(rows))
    for i, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(whole[i, length - 1 : length + STEPS - 1].argmax(-1), tokens[i])
        np.testing.assert_allclose(slots.logits[i], whole[i, length + STEPS - 1], atol=1e-4, rtol=0)
    if config == "maverick":
        kept = [layer.keys.shape for layer in cache["periods"]]
        assert kept == [(2, 3, 2, 8, 8)] * 3 + [(2, 3, 2, CONTEXT, 8)], "local layers keep one chunk"


@pytest.mark.parametrize(("sizes", "said"), [({"pipeline": 2}, "mesh.pipeline"), ({"context": 2}, "share rows")])
def test_meshes_that_write_no_text_are_refused(mesh_of, sizes, said):
    with mesh_of(**sizes), pytest.raises(InputError, match=said):
        Scanned.of(case("maverick").ours)

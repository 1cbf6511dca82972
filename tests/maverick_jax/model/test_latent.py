"""Latent thoughts: Jacobi passes equal the sequential loop, in packed rows and on meshes; without latents nothing
changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.latent import LatentConfig
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.transformer import Maverick
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny

LATENT = 63
LENGTH = 16
PLACES = {0: ((2, 3), (9, 10, 12)), 1: ((2,), (9, 10)), 2: ((), ()), 3: ((3,), (12,))}
"""Row -> places of latents in its two segments. The second segment of row 0 has two spans, of 2 and 1."""


def config_of(passes: int = 3, *, latent: bool = True, **changes):
    """Weights are large, so that latents matter."""
    base = {"num_hidden_layers": 2, "no_rope_layer_interval": 2, "num_local_experts": 0, "initializer_range": 0.2}
    section = LatentConfig(token_id=LATENT, passes=passes, **changes) if latent else None
    return tiny.model_config(**base, attention_chunk_size=4, latent=section)


@functools.cache
def rows() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(0, LATENT, (4, LENGTH)).astype(np.int32)
    index = np.arange(LENGTH, dtype=np.int32)[None, :]
    border = np.array([8, 5, 4, 8], np.int32)[:, None]
    for row, spans in PLACES.items():
        tokens[row, [place for span in spans for place in span]] = LATENT
    segments = (1 + (index >= border)).astype(np.int32)
    positions = np.where(segments == 1, index, index - border).astype(np.int32)
    return {"tokens": tokens, "positions": positions, "segment_ids": segments}


@functools.cache
def model_of(config) -> Maverick:
    """One whose feedback is neither the identity nor of the size of an embedding."""
    model = tiny.model_of(config, 0)
    if config.latent is not None:
        matrix = 0.1 * jax.random.normal(jax.random.key(1), model.latent.matrix.shape)
        model.latent = jax.tree.map(lambda x: x, model.latent)
        model.latent.matrix = nnx.Param(matrix, axes=model.latent.matrix.get_metadata("axes"))
        model.latent.gain = nnx.Param(jnp.full((1,), 0.5), axes=model.latent.gain.get_metadata("axes"))
    return model


def inputs() -> Inputs:
    return Inputs(**{name: jnp.asarray(x) for name, x in rows().items()})


def sequential(model: Maverick, inputs: Inputs) -> jax.Array:
    """The slow twin: one latent after the other, each from a whole forward pass."""
    x, forward = model.embed_inputs(inputs), model.through(inputs)
    index = jnp.arange(LENGTH)[None, :, None]
    for place in sorted({place for spans in PLACES.values() for span in spans for place in span}):
        z = model.latent(forward(x).hidden, model.embed[...])
        before = jnp.sum(jnp.where(index == place - 1, z, 0), axis=1, keepdims=True)
        x = jnp.where((index == place) & (inputs.tokens == LATENT)[..., None], before, x)
    return forward(x).hidden


def jacobi(model: Maverick, inputs: Inputs) -> jax.Array:
    return model.hidden(inputs)[0]


def value_and_gradient(hidden, config) -> tuple[np.ndarray, dict]:
    """Hidden states, and gradients of a loss of them all."""

    def loss(model):
        found = hidden(model, inputs())
        return jnp.sum(found * jnp.cos(jnp.arange(found.size, dtype=jnp.float32)).reshape(found.shape)), found

    with jax.set_mesh(single_device_mesh()):
        (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model_of(config))
    return np.asarray(found), jax.tree.map(np.asarray, gradient)


@functools.cache
def reference() -> tuple[np.ndarray, dict]:
    return value_and_gradient(sequential, config_of())


def test_as_many_passes_as_latents_equal_the_sequential_loop():
    """In value and gradient; rows have two segments, with up to three latents in two spans."""
    found, gradient = value_and_gradient(jacobi, config_of())
    np.testing.assert_allclose(found, reference()[0], atol=1e-5, rtol=0)
    for x, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference()[1]), strict=True):
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    assert np.abs(gradient.latent.matrix[...]).max() > 0.01


def test_n_passes_for_two_spans_are_too_few():
    """The mutation: two passes suffice for every span, and not for the segment with a span of 2 and one of 1."""
    with jax.set_mesh(single_device_mesh()):
        found = np.asarray(jax.jit(jacobi)(model_of(config_of(passes=2)), inputs()))
    difference = np.abs(found - reference()[0]).max(axis=2)
    np.testing.assert_allclose(difference[1:], 0, atol=1e-5)
    np.testing.assert_allclose(difference[0, :12], 0, atol=1e-5)
    assert difference[0, 12:].max() > 1e-2


def test_a_gradient_through_the_last_pass_alone_has_the_same_value_and_less_gradient():
    found, gradient = value_and_gradient(jacobi, config_of(gradient=1))
    np.testing.assert_allclose(found, reference()[0], atol=1e-5, rtol=0)
    whole = reference()[1].embed[...]
    assert np.abs(gradient.embed[...] - whole).max() > 1e-3


def test_logits_of_rows_without_latents_are_those_of_the_plain_model_to_the_bit():
    plain, latent = config_of(latent=False), config_of()
    tokens = np.where(rows()["tokens"] == LATENT, 0, rows()["tokens"])
    of = lambda config: np.asarray(tiny.model_of(config, 0).logits(tokens, rows()["positions"], rows()["segment_ids"]))
    np.testing.assert_array_equal(of(latent), of(plain))


def test_a_latent_that_begins_a_segment_reads_zeros():
    """Nothing of the segment before it, and no other value than in a row that begins with it."""
    ids, model = rows()["tokens"].copy(), model_of(config_of())
    ids[0, 8] = LATENT
    of = lambda tokens: np.asarray(model.logits(tokens, rows()["positions"], rows()["segment_ids"]))
    other = ids.copy()
    other[0, :8] = 1
    np.testing.assert_array_equal(of(ids)[0, 8:], of(other)[0, 8:])


MESHES = [
    pytest.param({"context": 2, "tensor": 2, "fsdp": 2}, marks=pytest.mark.slow),
    {"context": 2},
    pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, marks=pytest.mark.slow),
    pytest.param({"context": 4}, marks=pytest.mark.slow),
    pytest.param({"tensor": 4}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_logits_and_gradients_are_the_same_on_every_mesh(sizes, mesh_of):
    def loss(model, tokens, positions, segments):
        logits = model.logits(tokens, positions, segments)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2), logits

    def found(sizes):
        with mesh_of(**sizes):
            given = [jax.device_put(x, tiny.RULES("batch", None)) for x in rows().values()]
            model = tiny.on_mesh(model_of(config_of()))
            (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, *given)
            return np.asarray(logits), jax.tree.map(np.asarray, gradient)

    one, other = found({"data": 1}), found(sizes)
    np.testing.assert_allclose(other[0], one[0], atol=2e-5, rtol=0)
    for x, expected in zip(jax.tree.leaves(other[1]), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))

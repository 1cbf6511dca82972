"""Repeated periods equal a loop over layers, in value and gradient; run once, they are the plain model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.loops import loop_draws
from maverick_jax.model.norm import rms_norm
from maverick_jax.model.transformer import Maverick
from maverick_jax.reasoning import Loops
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny

DEPTH = {"num_hidden_layers": 3, "no_rope_layer_interval": 1, "num_local_experts": 0, "interleave_moe_layer_step": 1}
"""Three periods of one layer."""
EXPERTS = {"num_hidden_layers": 6, "no_rope_layer_interval": 2}
"""Three periods of two layers, the second a mixture of experts."""


def config(times: int, shape=DEPTH, **changes):
    return tiny.model_config(**shape, loops=Loops(periods=(1, 2), times=times, **changes))


def model_of(config) -> Maverick:
    """A model with the weights of the model without loops, and a gain that is not zero."""
    plain, model = tiny.model_of(config.model_copy(update={"loops": None}), 0), tiny.model_of(config, 0)
    gain = {"loop_gain": jnp.asarray(np.random.default_rng(0).normal(size=config.hidden_size) * 0.3, jnp.float32)}
    known = names.flatten(plain) | gain
    return names.unflatten(model, {name: known[name] for name in names.flatten(model)})


def twin(model: Maverick, inputs: Inputs, times: int) -> jax.Array:
    """Hidden states, layer by layer."""
    first, end = model.config.loops.periods
    size = len(model.config.period)
    run = functools.partial(_through, model, inputs)
    x = run(model.embed_inputs(inputs), range(first * size))
    entered = x
    for number in range(times):
        x = x if number == 0 else x + model.loop_gain[...][None, None, :] * entered
        x = run(x, range(first * size, end * size))
    x = run(x, range(end * size, model.config.num_hidden_layers))
    return rms_norm(x, model.norm[...], model.config.rms_norm_eps)


def _through(model: Maverick, inputs: Inputs, x: jax.Array, layers) -> jax.Array:
    for i in layers:
        x, _ = model.layer(i)(x, Positions.of(model.config, inputs, model.rules), inputs.segment_ids > 0)
    return x


def placed(**more) -> Inputs:
    rows = {name: x[0] for name, x in tiny.batch(config(2)).items()}
    put = lambda x: jax.device_put(x, tiny.RULES("batch", "length"))
    return Inputs(*(put(rows[name]) for name in ("tokens", "positions", "segment_ids")), **more)


def test_periods_that_run_once_are_the_plain_model_bit_for_bit():
    rows = {name: x[0] for name, x in tiny.batch(config(1)).items() if name in ("tokens", "segment_ids")}
    plain = tiny.model_of(tiny.model_config(**DEPTH), 0)
    np.testing.assert_array_equal(model_of(config(1)).logits(**rows), plain.logits(**rows))


@pytest.mark.parametrize("drawn", [None, 1, 2])
def test_hidden_states_and_gradients_are_those_of_a_loop_over_layers(drawn):
    model, mesh = model_of(config(3, drawn=drawn is not None)), single_device_mesh()
    with jax.set_mesh(mesh):
        inputs = placed(loops=None if drawn is None else jnp.int32(drawn))
        fast = lambda model: jnp.sum(jnp.sin(model.hidden(inputs)[0]))
        slow = lambda model: jnp.sum(jnp.sin(twin(model, inputs, drawn or 3)))
        (one, found), (two, expected) = (jax.jit(jax.value_and_grad(f))(model) for f in (fast, slow))
    np.testing.assert_allclose(one, two, rtol=2e-6)
    expected = names.flatten(expected)
    for name, gradient in names.flatten(found).items():
        scale = np.abs(expected[name]).max() + 1e-6
        np.testing.assert_allclose(gradient, expected[name], atol=3e-6 * scale, rtol=0, err_msg=name)


@pytest.mark.slow
def test_the_load_of_a_repeated_router_counts_each_token_once():
    model = model_of(config(2, EXPERTS))
    with jax.set_mesh(single_device_mesh()):
        _, stats = jax.jit(lambda model, inputs: model.hidden(inputs))(model, placed())
        tokens = int((np.asarray(placed().segment_ids) > 0).sum())
    assert stats is not None
    np.testing.assert_allclose(stats.load.sum(axis=-1), [tokens] * 3, rtol=1e-6)


def test_the_number_of_times_is_a_function_of_the_step():
    draws = [loop_draws(config(3, drawn=True), jnp.int32(step), 2) for step in range(40)]
    counts = [draw["loops"].tolist() for draw in draws]
    assert {tuple(count) for count in counts} == {(1, 1), (2, 2), (3, 3)}
    assert counts[7] == loop_draws(config(3, drawn=True), jnp.int32(7), 2)["loops"].tolist()
    assert loop_draws(config(3), jnp.int32(0), 2) == {}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2}, {"expert": 2, "context": 2}])
def test_hidden_states_are_those_of_one_device(sizes, mesh_of):
    found = []
    for mesh in (sizes, {"data": 1}):
        with mesh_of(**mesh):
            model = tiny.on_mesh(model_of(config(3, EXPERTS)))
            rows = {name: x[0] for name, x in tiny.batch(model.config).items() if name in ("tokens", "segment_ids")}
            found.append(np.asarray(model.logits(**rows)))
    np.testing.assert_allclose(found[0], found[1], atol=2e-5, rtol=0)

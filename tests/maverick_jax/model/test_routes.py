"""Replay of routes: the same experts as before to the bit, with the scores of the routers as they are now."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.checkpoint import names
from maverick_jax.errors import InputError
from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.norm import rms_norm
from maverick_jax.reasoning import Loops
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny

DEPTH = 5
"""Two periods of two layers and a tail of one, all with experts."""


def config_of(k: int, **changes):
    sizes = {"num_hidden_layers": DEPTH, "no_rope_layer_interval": 2, "interleave_moe_layer_step": 1}
    return tiny.model_config(**sizes, num_experts_per_tok=k, **changes)


def inputs_of(config, **more) -> Inputs:
    fields = {name: jnp.asarray(x[0]) for name, x in tiny.batch(config, rows=4).items()}
    return Inputs(fields["tokens"], fields["positions"], fields["segment_ids"], **more)


def moved(model):
    """The model after an update, so to say: all parameters are others."""
    draw = np.random.default_rng(5)
    return jax.tree.map(lambda w: w + jnp.asarray(0.3 * draw.normal(size=w.shape) * jnp.std(w), w.dtype), model)


def by_layers(model, inputs: Inputs, routes):
    """The slow twin of `hidden`: layer by layer, each router told what to choose."""
    placed = Positions.of(model.config, inputs, model.rules)
    x, given = model.embed_inputs(inputs), iter(range(routes.shape[2]))
    for i in range(DEPTH):
        layer = model.layer(i)
        if layer.spec.moe:
            number = next(given)
            own = [routes[:, :, number, j].astype(jnp.int32) for j in range(routes.shape[3])]
            layer.moe.choose = lambda logits, own=own: own
        x, _ = layer(x, placed, inputs.segment_ids > 0)
    return rms_norm(x, model.norm[...], model.config.rms_norm_eps)


@pytest.mark.parametrize("k", [1, 2])
def test_replayed_routes_are_exact(k):
    config = config_of(k)
    with jax.set_mesh(single_device_mesh()):
        model, inputs = tiny.on_mesh(tiny.model_of(config, 0)), inputs_of(config)
        x, stats, routes = jax.jit(lambda m, i: m.routed(i))(model, inputs)
        assert routes.shape == (4, 24, DEPTH, k) and routes.dtype == jnp.int16
        replayed = dataclasses.replace(inputs, routes=routes)
        again, other_stats = jax.jit(lambda m, i: m.hidden(i))(model, replayed)
        np.testing.assert_array_equal(again, x)
        jax.tree.map(np.testing.assert_array_equal, other_stats, stats)
        later = moved(model)
        _, live = jax.jit(lambda m, i: m.hidden(i))(later, inputs)
        _, kept = jax.jit(lambda m, i: m.hidden(i))(later, replayed)
    np.testing.assert_array_equal(kept.load, stats.load)  # each expert has the tokens that it had
    assert np.abs(live.load - stats.load).sum() > 20 and not np.allclose(kept.z_loss, stats.z_loss)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_value_and_gradient_equal_those_of_the_twin(k):
    config = config_of(k)
    with jax.set_mesh(single_device_mesh()):
        model, inputs = tiny.on_mesh(tiny.model_of(config, 0)), inputs_of(config)
        routes = jax.jit(lambda m, i: m.routed(i)[2])(model, inputs)
        later, replayed = moved(model), dataclasses.replace(inputs, routes=routes)
        real = (inputs.segment_ids > 0)[..., None]
        loss = lambda x: (jnp.sum(jnp.where(real, jnp.sin(x), 0)), x)
        fast = jax.value_and_grad(lambda m: loss(m.hidden(replayed)[0]), has_aux=True)
        slow = jax.value_and_grad(lambda m: loss(by_layers(m, inputs, routes)), has_aux=True)
        ((_, x), found), ((_, y), expected) = jax.jit(fast)(later), jax.jit(slow)(later)
    np.testing.assert_allclose(np.where(real, x, 0), np.where(real, y, 0), rtol=0, atol=2e-5)
    found, expected = names.flatten(found), names.flatten(expected)
    for name, b in expected.items():
        np.testing.assert_allclose(found[name], b, rtol=0, atol=3e-5 * max(np.abs(b).max(), 1e-3), err_msg=name)
    # routers learn through the scores of the experts that are given
    assert all(np.abs(found[name]).max() > 0 for name in found if name.endswith("moe/router"))


CONTEXT = pytest.param({"context": 2, "fsdp": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("sizes", [{"data": 2, "expert": 2, "tensor": 2}, CONTEXT], ids=str)
def test_meshes_change_nothing(mesh_of, sizes):
    config = config_of(2, attention_chunk_size=4)
    inputs = inputs_of(config)

    def run(sizes, routes):
        with mesh_of(**sizes):
            model = tiny.on_mesh(tiny.model_of(config, 1))
            given = dataclasses.replace(inputs, routes=routes).split(model.rules)
            if routes is None:
                return np.asarray(jax.jit(lambda m, i: m.routed(i)[2])(model, given))
            _, stats = jax.jit(lambda m, i: m.hidden(i))(model, given)
            return jax.device_get(stats)

    routes = jnp.asarray(run({"data": 1}, None))
    one, many = run({"data": 1}, routes), run(sizes, routes)
    np.testing.assert_array_equal(many.load, one.load)
    np.testing.assert_allclose(many.z_loss, one.z_loss, rtol=1e-4)


def test_routes_that_do_not_fit_are_refused(mesh_of):
    config = config_of(1)
    routes = lambda *rest: jnp.zeros((4, 24, *rest), jnp.int16)
    with jax.set_mesh(single_device_mesh()):
        model = tiny.on_mesh(tiny.model_of(config, 0))
        with pytest.raises(InputError, match=r"routes: .*expected \[B, T, 5, 1\]"):
            model.hidden(inputs_of(config, routes=routes(5, 2)))
    looped = config_of(1, loops=Loops(periods=(0, 1), times=2))
    with jax.set_mesh(single_device_mesh()):
        model = tiny.on_mesh(tiny.model_of(looped, 0))
        with pytest.raises(InputError, match=r"not with mesh\.pipeline or model\.loops"):
            model.hidden(inputs_of(looped, routes=routes(5, 1)))

"""Building and calling a model from a script: what works in one line, and the errors of a wrong call."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import maverick_jax
from maverick_jax import Maverick, MeshConfig, ModelConfig, make_mesh
from maverick_jax.errors import InputError
from maverick_jax.model.inputs import Inputs
from tests.helpers.tiny import model_config


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return model_config(num_hidden_layers=2)


@pytest.fixture(scope="module")
def spread(config) -> Maverick:
    return Maverick.init(config, mesh=make_mesh({"fsdp": 2, "expert": 2, "tensor": 2}))


def test_init_needs_no_mesh_and_equals_building_under_one(config):
    model = Maverick.init(config, seed=3)
    assert model.embed[...].sharding.mesh.size == 1
    with jax.set_mesh(make_mesh({}, jax.devices()[:1])):
        built = jax.jit(lambda: Maverick(config, rngs=nnx.Rngs(3)))()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), model, built)


def test_building_without_a_mesh_says_how(config):
    with pytest.raises(InputError, match=r"no mesh is set; use Maverick\.init\(config\)"):
        Maverick(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([[1, 2, 3]], "1 sequences; expected a multiple of 4"),
        ([1, 2, 3], r"shapes \(3,\); expected one shape \[B, T\]"),
        ([[1, 10**6]] * 4, "tokens: 1 to 1000000; expected 0 to"),
        ([[-1, 1]] * 4, "tokens: -1 to 1; expected 0 to"),
        ([[]] * 4, r"are whole numbers; got float32"),
        ([[0.5, 1.0]] * 4, r"are whole numbers; got float32"),
        ([[True, False]] * 4, r"are whole numbers; got bool"),
        (np.zeros((4, 0), np.int32), r"tokens: shape \(4, 0\) has no token"),
        (np.zeros((0, 3), np.int32), r"tokens: shape \(0, 3\) has no token"),
    ],
)
def test_a_wrong_call_of_logits_is_an_input_error(spread, tokens, said):
    with pytest.raises(InputError, match=said):
        spread.logits(jnp.asarray(tokens))


def test_positions_of_another_shape_are_an_input_error(spread):
    with pytest.raises(InputError, match=r"shapes \(4, 3\), \(4, 2\)"):
        spread.logits(jnp.ones((4, 3), jnp.int32), positions=jnp.ones((4, 2), jnp.int32))


def test_optax_losses_of_integer_labels_and_of_one_hot_labels_agree(spread, config):
    tokens = jax.random.randint(jax.random.key(0), (4, 9), 0, config.vocab_size)
    with jax.set_mesh(spread.embed[...].sharding.mesh):
        tokens = jax.device_put(tokens, spread.rules("batch", None))
        by_label = jax.sharding.auto_axes(
            optax.softmax_cross_entropy_with_integer_labels, out_sharding=spread.rules("batch", None)
        )
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            logits = spread.logits(tokens[:, :-1])
            one_hot = jax.nn.one_hot(tokens[:, 1:], config.vocab_size)
            found = by_label(logits, tokens[:, 1:])
            expected = optax.softmax_cross_entropy(logits, one_hot)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert maverick_jax.__version__ == version("maverick-jax")


def test_a_mesh_config_makes_a_mesh():
    mesh = make_mesh(MeshConfig(data=-1, tensor=2))
    assert mesh.shape["data"] == 4 and mesh.shape["tensor"] == 2


def test_the_default_mesh_has_all_devices_along_data():
    assert make_mesh().shape["data"] == len(jax.devices())
    assert make_mesh(devices=jax.devices()[:2]).shape["data"] == 2


def test_the_public_names_are_listed():
    assert {*maverick_jax.__all__, "text"} <= set(dir(maverick_jax))
    assert all(getattr(maverick_jax, name) is not None for name in dir(maverick_jax))


@pytest.mark.parametrize("call", [Maverick.logits, lambda model, x: model.hidden(Inputs(x))])
def test_traced_calls_without_a_mesh_say_what_to_do(config, call):
    model, tokens = Maverick.init(config), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(InputError, match=r"no mesh is set; call the model under jax\.set_mesh\(mesh\)"):
        jax.jit(call)(model, tokens)
    with jax.set_mesh(model.embed[...].sharding.mesh):
        jax.eval_shape(call, model, tokens)


def test_a_shipped_model_with_changes():
    changed = ModelConfig.from_name("tiny", hidden_size=64, balance={"kind": "none"})
    assert (changed.hidden_size, changed.balance.kind) == (64, "none")
    assert ModelConfig.from_name("tiny", balance=changed.balance).balance == changed.balance
    with pytest.raises(InputError, match=r"from_name\('tiny'\): hiden_size: unknown key; did you mean hidden_size\?"):
        ModelConfig.from_name("tiny", hiden_size=64)
    with pytest.raises(InputError, match=r"from_name\('tiny'\): hidden_size: .*, got 'big'"):
        ModelConfig.from_name("tiny", hidden_size="big")

"""Layers that save values by name: the same gradients whatever is saved, and saved is what the lists say."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maverick_jax.model.attention import Positions
from maverick_jax.model.inputs import Inputs
from maverick_jax.model.layers import Layer
from maverick_jax.model.remat import remat
from maverick_jax.model.transformer import Maverick
from maverick_jax.network import LayerSpec
from maverick_jax.saved import PRESETS, Remat, Saved, SavedNames
from maverick_jax.sharding import single_device_mesh
from tests.helpers import tiny
from tests.helpers.gradient_errors import MIXTURE, errors
from train.objectives.base import Context

MIXED = Remat(
    keep=SavedNames(all_layers=("attention",), dense_layers=("mlp",), moe_layers=("router", "received")),
    offload=SavedNames(global_layers=("qkv",), moe_layers=("mlp",), local_layers=("input",)),
)
OFFLOADED = Remat(offload=SavedNames(all_layers=("input", "qkv", "attention", "residual", "router", "mlp", "received")))
CHOICES = {**dict.fromkeys(PRESETS), "mixed": MIXED, "offloaded": OFFLOADED}


def gradients(choice):
    config = tiny.model_config(num_hidden_layers=4, no_rope_layer_interval=2, remat=choice)
    model = jax.jit(lambda: Maverick(config, tiny.RULES, rngs=nnx.Rngs(params=jax.random.key(0))))()
    rows = tiny.placed(tiny.batch(config))
    totals = tiny.PRETRAIN.totals(rows)
    rows = {name: x[0] for name, x in rows.items()}
    loss = lambda model: tiny.PRETRAIN.loss(model, rows, totals, Context(jnp.zeros((), jnp.int32), {}, {}))[0]
    return jax.jit(jax.value_and_grad(loss))(model)


@pytest.fixture(scope="module")
def recomputed():
    """Loss and gradients of layers that are recomputed, on one device."""
    with jax.set_mesh(single_device_mesh()):
        return jax.tree.map(np.asarray, gradients("full"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("none", "dots", "full"))) for name in CHOICES]
)
def test_gradients_on_eight_devices_do_not_depend_on_what_is_saved(name, recomputed, mesh_of):
    with mesh_of(fsdp=2, expert=2, tensor=2):
        found = gradients(CHOICES[name] or name)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


# ---- what is saved ---------------------------------------------------------------------------------------------------

B, T = 2, 16
DENSE, MOE = LayerSpec(moe=False, rope=True), LayerSpec(moe=True, rope=True)
CONFIG = tiny.model_config(attention_chunk_size=T)
D, HEADS, KV, H = CONFIG.hidden_size, CONFIG.num_attention_heads, CONFIG.num_key_value_heads, CONFIG.head_dim
STREAM, QUERIES, KEYS = (B, T, D), (B, T, HEADS, H), (B, T, KV, H)
WIDTHS = {DENSE: CONFIG.intermediate_size_mlp, MOE: CONFIG.intermediate_size}
OUTPUTS = [(B, KV, HEADS // KV, T, H), (B, KV, HEADS // KV, T, 1)]
"""Of blocked attention: outputs and logsumexp."""


def stream() -> jax.Array:
    return jnp.zeros(STREAM, out_sharding=tiny.RULES("batch", "length", None))


def tokens() -> Inputs:
    return Inputs(jnp.zeros((B, T), jnp.int32, out_sharding=tiny.RULES("batch", "length")))


def residuals(spec: LayerSpec, saved: Saved) -> collections.Counter:
    """Shapes of the floating-point arrays that the forward pass of a layer hands to its backward pass, by number."""

    def arrays():
        layer = Layer(CONFIG, spec, tiny.RULES, rngs=nnx.Rngs(params=jax.random.key(0)))
        positions = Positions.of(CONFIG, tokens(), tiny.RULES)
        run = remat(lambda layer, x: layer(x, positions, None)[0], saved)
        return jax.vjp(run, layer, stream())[1]

    with jax.set_mesh(single_device_mesh()):
        leaves = jax.tree.leaves(jax.eval_shape(arrays))
    return collections.Counter(x.shape for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


@pytest.mark.parametrize(
    ("spec", "name", "shapes"),
    [
        (DENSE, "qkv", [QUERIES, KEYS, KEYS]),
        (DENSE, "attention", OUTPUTS),
        (DENSE, "residual", [STREAM]),
        (DENSE, "mlp", [(B, T, WIDTHS[DENSE])] * 2),
        (MOE, "mlp", [(B, T, WIDTHS[MOE])] * 2),
        (MOE, "router", [(B, T, CONFIG.num_local_experts)]),
        (DENSE, "router", []),
        (DENSE, "input", []),
    ],
)
def test_a_kept_name_adds_its_values_to_what_the_backward_pass_finds(spec, name, shapes):
    nothing, kept = (
        residuals(spec, Saved(frozenset(), frozenset())),
        residuals(spec, Saved(frozenset({name}), frozenset())),
    )
    assert kept - nothing == collections.Counter(shapes) and not nothing - kept


def test_everything_saves_what_was_computed_and_not_a_named_view_of_it():
    def layer(x):
        named = checkpoint_name((x @ x).reshape(-1), "qkv")
        return named @ named

    run = remat(layer, Saved(frozenset({"everything"}), frozenset()))
    found = jax.eval_shape(lambda x: jax.vjp(run, x)[1], jnp.ones((4, 4)))
    assert (16,) not in {leaf.shape for leaf in jax.tree.leaves(found)}


def test_an_offloaded_name_moves_its_values_to_the_host_and_back():
    saved = Saved(frozenset({"attention"}), frozenset({"mlp"}))

    def gradient():
        layer = Layer(CONFIG, DENSE, tiny.RULES, rngs=nnx.Rngs(params=jax.random.key(0)))
        positions = Positions.of(CONFIG, tokens(), tiny.RULES)
        run = remat(lambda layer, x: jnp.sum(layer(x, positions, None)[0]), saved)
        return jax.grad(run, argnums=1)(layer, stream())

    with jax.set_mesh(single_device_mesh()):
        program = str(jax.make_jaxpr(gradient)())
    assert program.count("MemorySpace.Host") == program.count("MemorySpace.Device") == 2  # gate and up


# ---- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "dots", "attention")), MIXED],
    ids=["full", "dots", "attention", "mixed"],
)
def test_every_gradient_of_a_bfloat16_model_is_near_that_of_float32(choice):
    """The bound and its reason: tests/maverick_jax/test_precision.py, which tests `none`."""
    found = errors(MIXTURE.model_copy(update={"remat": choice}), 2048, same_routing=True)
    assert max(found.values()) < 0.01, max(found, key=lambda name: found[name])

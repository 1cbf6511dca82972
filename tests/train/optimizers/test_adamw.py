"""AdamW: its direction is Optax's, its moments keep their dtypes, and only matrices decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maverick_jax.checkpoint import names
from tests.helpers import tiny
from train.optimizers import AdamW
from train.optimizers.adamw import scale_by_adam


@pytest.fixture(autouse=True)
def one_device(mesh_of):
    with mesh_of(data=1):
        yield


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in names.flatten(tree).items()}


def test_only_matrices_decay():
    config = tiny.model_config()
    optimizer = AdamW(weight_decay=0.5).build(10, config)
    decay, rates = optimizer.transform, optimizer.rates(jnp.int32(3), jnp.int32(0))
    init, _ = tiny.jitted(config)
    model = init(0).model
    zeros = lambda model: jax.tree.map(jnp.zeros_like, model)
    updates = jax.jit(lambda model: decay.update(zeros(model), decay.init(model), model, rates=rates)[0])(model)
    moved = {name for name, x in arrays(updates).items() if np.abs(x).max() > 0}
    kept = set(arrays(model)) - moved
    assert {name.rpartition("/")[2] for name in kept} == {"embed", "norm", "attention_norm", "mlp_norm"}


def test_adam_equals_optax():
    params = {"a": jnp.ones((3, 4)), "b": jnp.zeros(5)}
    ours, theirs = scale_by_adam(0.9, 0.95, 1e-8, "float32", "float32"), optax.scale_by_adam(0.9, 0.95, 1e-8)
    mine, other = ours.init(params), theirs.init(params)
    for i in range(5):
        rng = np.random.default_rng(i)
        grads = {name: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for name, p in params.items()}
        got, mine = ours.update(grads, mine)
        with jax.numpy_dtype_promotion("standard"):
            expected, other = theirs.update(grads, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)


def test_moments_keep_their_dtypes():
    config = tiny.model_config()
    init, step = tiny.jitted(config, AdamW(mu_dtype="bfloat16", nu_dtype="bfloat16"))
    state, _ = jax.eval_shape(step, jax.eval_shape(init, 0), tiny.placed(tiny.batch(config)))
    flat = names.flatten(state.opt_state)
    moments = {name: x.dtype for name, x in flat.items() if "/mu/" in name or "/nu/" in name}
    assert moments and all(dtype == jnp.bfloat16 for dtype in moments.values())

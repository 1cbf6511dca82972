"""Rows of a table by token, and the gradient of tokens that are frequent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.lookup import lookup

MESHES = [({"data": 1}, P(), P()), ({"data": 2, "tensor": 2}, P(None, "tensor"), P("data", None, "tensor"))]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(("sizes", "table_spec", "out"), MESHES, ids=["one device", "four devices"])
def test_rows_and_gradients_are_those_of_numpy(sizes, table_spec, out, stored, mesh_of):
    rng = np.random.default_rng(0)
    table, tokens = rng.normal(size=(5, 4)).astype(stored), rng.integers(0, 4, (2, 6)).astype(np.int32)
    pull = rng.normal(size=(2, 6, 4)).astype(np.float32)
    expected = np.zeros((5, 4), np.float32)
    np.add.at(expected, tokens, pull.astype(jnp.bfloat16).astype(np.float32))
    with mesh_of(**sizes):
        placed, ids = jax.device_put(table, table_spec), jax.device_put(tokens, P(*out[:1]))
        weights = jax.device_put(pull, out)
        loss = lambda table: jnp.sum(lookup(out, "bfloat16", table, ids).astype(jnp.float32) * weights)
        found, gradient = jax.jit(lambda t: (lookup(out, "bfloat16", t, ids), jax.grad(loss)(t)))(placed)
    np.testing.assert_array_equal(np.asarray(found), table.astype(jnp.bfloat16)[tokens])
    assert gradient.dtype == table.dtype
    np.testing.assert_allclose(np.asarray(gradient, np.float32), expected, rtol=1e-6 if stored == "float32" else 0.004)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("times", [64, 4096, 32768])
def test_the_gradient_of_a_frequent_token_adds_up_all_its_occurrences(times, stored):
    tokens = jnp.full((1, times), 3, jnp.int32)
    loss = lambda table: jnp.sum(lookup(None, "bfloat16", table, tokens).astype(jnp.float32) * 1e-3)
    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.ones((16, 8), stored)), np.float32)
    np.testing.assert_allclose(gradient[3], times * 1e-3, rtol=0.005)  # 1e-3 is rounded to bfloat16, and the sum stored
    assert not gradient[:3].any() and not gradient[4:].any()

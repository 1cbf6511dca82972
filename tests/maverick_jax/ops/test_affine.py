"""Shared gains and biases: results of the compute dtype, gradients summed in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.model.norm import layer_norm, rms_norm
from maverick_jax.ops.affine import scaled, shifted

TWINS = {scaled: lambda x, shared: x * shared, shifted: lambda x, shared: x + shared}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("op", TWINS, ids=lambda op: op.__name__)
def test_the_result_is_that_of_the_dtype_to_the_bit(op, dtype):
    rng = np.random.default_rng(0)
    x, shared = jnp.asarray(rng.normal(size=(3, 500)), dtype), jnp.asarray(rng.normal(size=(1, 500)), jnp.float32)
    found = op(x, shared)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, TWINS[op](x, shared.astype(dtype)))


NORMS = {
    "scaled": lambda shared, x: scaled(x, shared[None, None]),
    "shifted": lambda shared, x: shifted(x, shared[None, None]),
    "rms_norm": lambda shared, x: rms_norm(x, shared, 1e-5),
    "layer_norm": lambda shared, x: layer_norm(x, shared, shared, 1e-5),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_of_many_tokens_is_that_of_float32(name):
    """16,384 terms, most of one sign: a bfloat16 sum would stop at a fraction of the right value."""
    x = 1 + 0.1 * np.random.default_rng(0).normal(size=(4, 4096, 8))
    pull = np.linspace(0.5, 1.5, 8)

    def gradient(dtype):
        values, weights = jnp.asarray(x, dtype), jnp.asarray(pull, dtype)[None, None]
        loss = lambda shared: jnp.sum((NORMS[name](shared, values) * weights).astype(jnp.float32))
        return jax.jit(jax.grad(loss))(jnp.ones(8))

    # x, the pull and the gradient itself are rounded, to 0.4% each at most
    np.testing.assert_allclose(gradient("bfloat16"), gradient("float32"), rtol=0.01)

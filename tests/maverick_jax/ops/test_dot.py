"""Products of bfloat16 on a CPU with kernels for them, against operands that are widened first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops import dot as module
from maverick_jax.ops.dot import dot

FORMS = {
    "rows by columns": ("mk,kn->mn", (1,), (0,), ((), ())),
    "rows by rows": ("mk,nk->mn", (1,), (1,), ((), ())),
    "columns by columns": ("km,kn->mn", (0,), (0,), ((), ())),
    "columns by rows": ("km,nk->mn", (0,), (1,), ((), ())),
    "two contracted axes": ("abm,abn->mn", (0, 1), (0, 1), ((), ())),
    "three dimensions": ("abk,kn->abn", (2,), (0,), ((), ())),
    "batches": ("bsmk,bsnk->bsmn", (3,), (3,), ((0, 1), (0, 1))),
    "batches of columns": ("bskm,bskn->bsmn", (2,), (2,), ((0, 1), (0, 1))),
    "batches that are not first": ("mbk,nbk->bmn", (2,), (2,), ((1,), (1,))),
}
SIZES = {"a": 4, "b": 3, "s": 2, "m": 48, "n": 40, "k": 64}
SURROUNDINGS = {
    "transposed before": lambda f: lambda x, y: f(x.T.T * 2, jnp.swapaxes(jnp.swapaxes(y, 0, -1), 0, -1)),
    "transposed after": lambda f: lambda x, y: f(x, y).T,
    "in a loop": lambda f: lambda x, y: jax.lax.map(lambda a: f(x * a, y).T, jnp.arange(1, 3, dtype=x.dtype)),
}


def operands(form):
    inputs = FORMS[form][0].split("->")[0].split(",")
    keys = jax.random.split(jax.random.key(0), 2)
    return [
        jax.random.normal(key, [SIZES[axis] for axis in axes], jnp.bfloat16)
        for key, axes in zip(keys, inputs, strict=True)
    ]


@pytest.fixture
def native(monkeypatch):
    """Says whether the CPU is taken to multiply bfloat16; the kernels run on any."""

    def choose(found: bool):
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: found)

    return choose


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_products_equal_widened_ones(form, surroundings, native):
    """In value and gradient, whatever the compiler could fold into the product."""
    _, *arguments = FORMS[form]

    def product_and_gradients():  # a new function each time, so that nothing traced before is found
        around = SURROUNDINGS[surroundings](lambda x, y: dot(x, y, *arguments))
        loss = lambda x, y: jnp.sum(jnp.square(around(x, y)))
        return jax.jit(lambda x, y: (around(x, y), jax.grad(loss, (0, 1))(x, y)))(*operands(form))

    native(True)
    value, gradients = product_and_gradients()
    native(False)
    expected, expected_gradients = product_and_gradients()
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
        # gradients of bfloat16 operands are rounded to it
        assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def test_operands_of_products_stay_narrow_where_the_cpu_multiplies_them(native):
    native(True)
    x = jnp.ones((8, 8), jnp.bfloat16)
    text = jax.jit(lambda x: dot(x, x, (1,), (0,))).lower(x).as_text()
    assert "(tensor<8x8xbf16>, tensor<8x8xbf16>) -> tensor<8x8xf32>" in text

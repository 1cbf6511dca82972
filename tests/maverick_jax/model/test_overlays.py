"""Low-rank changes of matrices that are split over devices, against whole matrices on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maverick_jax.model.overlays import Factors, LowRank, gated_linear_of, linear_of
from maverick_jax.sharding import ShardingRules
from tests.helpers.collectives import collectives

RULES = ShardingRules()
B, T, D, F, RANK, SCALE = 8, 3, 16, 24, 2, 0.5


def draw(*shape, seed):
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def gradients(f, *args):
    return f(*args), *jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), argnums=range(len(args)))(*args)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "expert": 2, "tensor": 2}, {"data": 2, "fsdp": 4}], ids=str)
def test_gradients_of_low_rank_factors_equal_those_of_the_sum_and_are_scattered(sizes, mesh_of):
    x, w, a, b = draw(B, T, D, seed=0), draw(D, F, seed=1), draw(D, RANK, seed=2), draw(RANK, F, seed=3)
    down, c, d = draw(F, D, seed=4), draw(F, RANK, seed=5), draw(RANK, D, seed=6)

    def expected(x, a, b, c, d):
        h = x @ (w + SCALE * a @ b)
        return (jax.nn.silu(h) * h) @ (down + SCALE * c @ d)

    factors, out = Factors(0, 1), RULES("batch", "length", None)
    up_axes, down_axes = ("embed", "mlp"), ("mlp", "embed")

    def found(x, a, b, c, d):
        first = LowRank(nnx.Param(jax.device_put(w, RULES(*up_axes)), axes=up_axes), a, b, factors, SCALE)
        second = LowRank(nnx.Param(jax.device_put(down, RULES(*down_axes)), axes=down_axes), c, d, factors, SCALE)
        h = linear_of(x, first, RULES, "compute")
        return gated_linear_of(h, h, second, RULES, "compute", out=out)

    with mesh_of(**sizes):
        specs = out, *(RULES(*axes) for names in (up_axes, down_axes) for axes in factors.axes(names))
        args = [jax.device_put(array, spec) for array, spec in zip((x, a, b, c, d), specs, strict=True)]
        compiled = jax.jit(lambda *args: gradients(found, *args)).lower(*args).compile()
        got = compiled(*args)
    for one, other in zip(got, gradients(expected, x, a, b, c, d), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5 * np.abs(other).max())
    assert sorted(collectives(compiled.as_text(), "reduce-scatter")) == [f"{RANK},{D // 4}", f"{D // 4},{RANK}"]

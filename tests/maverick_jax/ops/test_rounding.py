"""Stochastic rounding to bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maverick_jax.ops.rounding import stochastic_round

KEY = jax.random.key(0)


def rounded(x) -> np.ndarray:
    return np.asarray(stochastic_round(jnp.asarray(x, jnp.float32), KEY), np.float32)


@pytest.mark.parametrize("share", [0.125, 0.5, 0.75])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_is_the_number_and_every_draw_a_neighbor(share, sign):
    below, gap = 1.5, 2.0**-7  # between 1 and 2, bfloat16 numbers lie 1/128 apart
    found = rounded(np.full(20_000, sign * (below + share * gap))) * sign
    assert set(found.tolist()) == {below, below + gap}
    # four standard deviations of a share of 20,000 draws
    assert np.mean(found > below) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 20_000))


def test_numbers_that_bfloat16_holds_and_those_not_finite_stay():
    held = np.array([0.0, -0.0, 1.0, -3.5, 2.0**-130, 3.3895314e38, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(rounded(held), held)
    nans = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # a carry would make them numbers
    assert np.isnan(rounded(nans)).all()


def test_the_draws_do_not_depend_on_the_mesh(mesh_of):
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    with mesh_of(fsdp=4, tensor=2):
        placed = jax.device_put(x, P("fsdp", "tensor"))
        found = jax.jit(stochastic_round)(placed, KEY)
        assert found.sharding.spec == P("fsdp", "tensor")
    np.testing.assert_array_equal(np.asarray(found, np.float32), rounded(x))

"""Sums over sequences on several devices: those of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maverick_jax.ops.collectives import batch_sums
from maverick_jax.sharding import ShardingRules

RULES = ShardingRules()


def local(x, y):
    """Of whole sequences: what stands before counts."""
    return {"sums": jnp.sum(jnp.cumsum(x, axis=1) * y), "rows": jnp.zeros_like(x, shape=5).at[x[:, 0]].add(1)}


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 8}, {"data": 2, "expert": 2, "tensor": 2}])
def test_it_is_the_sum_of_the_whole_batch(sizes, mesh_of):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 5, (8, 6)).astype(np.int32) for _ in range(2))
    expected = local(jnp.asarray(x), jnp.asarray(y))
    with mesh_of(**sizes):
        placed = [jax.device_put(a, RULES("batch", "length")) for a in (x, y)]
        found = jax.jit(lambda *arrays: batch_sums(local, *arrays, rules=RULES))(*placed)
        assert all(a.sharding.is_fully_replicated for a in found.values())
    jax.tree.map(np.testing.assert_array_equal, found, expected)
